"""Every dialect has an answer to every code, and every code is used, documented and in the one table."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.dialect import Answer, Arrival, Endpoint
from api.errors import STATUS
from api.intake import ImageIntake, IntakeOptions
from core.errors import ServingError
from tests.api.serving import INSIDE, unserved
from tests.api.test_errors import every_class

ROOT = Path(__file__).resolve().parents[2]
HOUSE = ("api", "batching", "core", "gateway", "pipelines", "serverless")
# Where the contract of a dialect's first clients has another status, or a sentence of its own.
OTHER_SIDE = {("/generate", "queue_full"), ("/generate-stream", "queue_full")}
OWN_WORDS = {("/edit", "deadline_exceeded")}
LONG = "the value 99999 is over the limit of 10; make it smaller. " * 100


@pytest.fixture(scope="module")
def endpoints() -> Iterator[list[Endpoint]]:
    with ImageIntake(IntakeOptions()) as intake:
        app = unserved(intake)
        yield app.state.endpoints


def fault(code: str, message: str) -> ServingError:
    kind = next(kind for kind in every_class(ServingError) if code in kind.codes)
    made = kind.__new__(kind)
    ServingError.__init__(made, code, message, param="input.width", retry_after=7)
    return made


def arrival(path: str) -> Arrival:
    return Arrival(id="0" * 16, shown_id="shown-id", path=path, started=0.0, headers={})


@pytest.mark.parametrize("code", STATUS)
def test_every_dialect_words_every_code(code: str, endpoints: list[Endpoint]) -> None:
    """A code that a dialect does not foresee would become a 500 of its own, in a shape nobody reads."""
    worded = [endpoint for endpoint in endpoints if endpoint.refusal is not None]
    assert worded
    for endpoint in worded:
        for message in ("short", LONG):
            assert endpoint.refusal is not None
            answer: Answer = endpoint.refusal(fault(code, message), arrival(endpoint.path))
            where = (endpoint.path, code)
            assert 400 <= answer.status < 600, where
            # A contract may choose another status, but never blame the caller for what is ours, or back.
            assert (answer.status < 500) == (STATUS[code] < 500) or where in OTHER_SIDE, where
            assert 0 < len(answer.body) <= 4096, where
            assert not INSIDE.search(answer.body), where
            assert answer.media_type == "application/json", where
            assert message[:5] in json.dumps(json.loads(answer.body)) or where in OWN_WORDS, where


def test_every_protected_route_has_words_of_its_own(endpoints: list[Endpoint]) -> None:
    """Else a missing key is told in another dialect's shape."""
    assert [endpoint.path for endpoint in endpoints if not endpoint.public and endpoint.refusal is None] == []


def test_every_route_names_a_dialect(endpoints: list[Endpoint]) -> None:
    """One that names the class it is made with would be counted with strangers."""
    assert {endpoint.dialect for endpoint in endpoints} & {"control", "job", "route", "refusing"} == set()


@pytest.mark.parametrize("code", sorted(STATUS))
def test_every_code_is_raised_somewhere(code: str) -> None:
    """A code that nothing raises is a promise to clients that nobody keeps."""
    tables = {ROOT / "core/errors.py", ROOT / "api/errors.py"}
    sources = [path for part in HOUSE for path in (ROOT / part).rglob("*.py") if path not in tables]
    made = (ROOT / "core/errors.py").read_text().partition("class OutOfDeviceMemory")[2]
    assert any(f'"{code}"' in text for text in (*(path.read_text() for path in sources), made))


def test_the_page_of_errors_is_the_table() -> None:
    """Clients are written against it."""
    page = (ROOT / "docs/errors.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d{3}) \| .{20,} \|$", page, re.MULTILINE))
    assert {code: int(status) for code, status in rows.items()} == dict(STATUS)
