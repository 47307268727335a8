"""One server for all tests that leave it as they found it."""

from collections.abc import Iterator

import pytest

from tests.api.serving import Served, serving


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as running:
        yield running


@pytest.fixture
def fresh() -> Iterator[Served]:
    """For tests that shut gates or change health."""
    with serving() as running:
        yield running
