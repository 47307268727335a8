"""One server for all tests that leave it as they found it."""

from collections.abc import Iterator

import pytest

from api.app import ApiOptions
from api.images import ImageLimits
from api.intake import IntakeOptions
from api.server import ServerOptions
from tests.api.remote import Canary
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


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    """Small limits of size; those of time only end what never comes, so a busy machine meets none."""
    with serving(
        ApiOptions(max_body_bytes=2 * 2**20, body_seconds=5, body_stall_seconds=5),
        IntakeOptions(limits=ImageLimits(max_bytes=2**20, max_pixels=4_000_000), codec_threads=2),
        ServerOptions(header_seconds=5, linger_seconds=2),
    ) as running:
        yield running


@pytest.fixture(scope="module")
def impatient() -> Iterator[Served]:
    """Short limits, so that slow callers need not be waited for."""
    with serving(
        ApiOptions(body_seconds=0.3), server=ServerOptions(header_seconds=0.3, linger_seconds=0.3)
    ) as running:
        yield running


@pytest.fixture
def canary() -> Iterator[Canary]:
    bird = Canary()
    yield bird
    bird.close()
