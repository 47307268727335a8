"""Errors are values that cross processes."""

import pickle

import pytest

from core import errors


@pytest.mark.parametrize(
    "error",
    [
        errors.OutOfDeviceMemory(),
        errors.DeviceLost("gone"),
        errors.RequestError("invalid_parameter", "no", param="width"),
        errors.CapacityError("queue_full", "full", retry_after=3),
        errors.CapacityError("not_ready", "no device", retryable=False),
    ],
)
def test_errors_survive_the_way_between_processes(error: errors.ServingError) -> None:
    """A remote worker's error must arrive as itself."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)


def test_an_unknown_code_is_a_programming_fault() -> None:
    """Codes are wire-stable, so a new one must be added on purpose."""
    with pytest.raises(ValueError, match="no code"):
        errors.RequestError("oops", "m")
    assert isinstance(errors.RequestError("conflict", "m"), errors.ServingError)
