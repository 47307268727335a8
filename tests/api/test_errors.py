"""One table turns codes into HTTP; nothing may be missing from it."""

import pytest

from api.errors import STATUS, headers_of, message_of
from core.errors import CapacityError, ExecutionError, OutOfDeviceMemory, RequestError, ServingError


def every_class(root: type[ServingError]) -> list[type[ServingError]]:
    return [root, *(found for child in root.__subclasses__() for found in every_class(child))]


def test_every_code_has_a_status_and_every_status_a_code() -> None:
    """A code without a row would answer 500 to something that is not our fault."""
    codes = {code for kind in every_class(ServingError) for code in kind.codes}
    assert codes == set(STATUS)


@pytest.mark.parametrize(
    ("seconds", "header"), [(None, "5"), (0.2, "1"), (7.1, "8"), (119.5, "120"), (9000.0, "120")]
)
def test_retry_after_is_whole_seconds_up_to_two_minutes(seconds: float | None, header: str) -> None:
    """Clients cap what they honour; more would be read as never."""
    assert headers_of(CapacityError("queue_full", "m", retry_after=seconds)) == {"Retry-After": header}


@pytest.mark.parametrize("error", [OutOfDeviceMemory(), ExecutionError("deadline_exceeded", "m")])
def test_what_would_fail_again_tells_sdks_not_to_retry(error: ServingError) -> None:
    """SDKs retry 5xx by themselves; a second run would cost as much and end the same way."""
    assert headers_of(error) == {"x-should-retry": "false"}


def test_a_callers_own_fault_is_not_worth_another_try() -> None:
    """Retry-After on a 4xx would invite the same request again."""
    assert headers_of(RequestError("invalid_image", "m")) == {}


def test_a_long_message_is_cut() -> None:
    """Error bodies stay below 4 KB whatever a message was built from."""
    assert len(message_of(RequestError("invalid_image", "x" * 100_000))) == 1000
