"""Whatever is refused beside the pictures' own routes: in its dialect's words, with its code in the log."""

import logging
from collections.abc import Callable, Iterator

import pytest

from api.app import AccessOptions
from api.keys import KeyRing
from tests.api.serving import Answer, Served, serving
from tests.api.test_observing import lines

KEYS = AccessOptions(keys=KeyRing.of(True, ["devtoken"]))


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    with serving(access=KEYS) as running:
        yield running


def ask(served: Served, method: str, path: str, key: str = "devtoken", body: bytes = b"{}") -> Answer:
    headers = {"X-API-Key": key, "X-Request-Id": "mine"}
    return served.client.request(method, path, body if method == "POST" else None, headers)


def is_openais(answer: Answer) -> bool:
    """And the SDXL service's at once."""
    body = answer.json()
    named = set(body["error"]) == {"message", "type", "param", "code"}
    return named and set(body) == {"error", "detail"} and bool(body["detail"] == body["error"]["message"])


def is_hugging_faces(answer: Answer) -> bool:
    return set(answer.json()) - {"param"} == {"error", "code"}


def is_the_web_uis(answer: Answer) -> bool:
    return set(answer.json()) - {"param"} == {"error", "detail", "code"}


def is_plain(answer: Answer) -> bool:
    return set(answer.json()) == {"detail", "error", "code", "request_id"}


SHAPES = [
    ("GET", "/v1/models", is_openais),
    ("GET", "/openai/v1/models/painter", is_openais),
    ("GET", "/hf/text-to-image/health", is_hugging_faces),
    ("POST", "/hf/no-such-task", is_hugging_faces),
    ("POST", "/sdapi/v1/txt2img", is_the_web_uis),
    ("GET", "/sdapi/v1/progress", is_the_web_uis),
    ("POST", "/sdapi/v1/options", is_the_web_uis),
    ("POST", "/lora/load", is_plain),
    ("GET", "/lora/list", is_plain),
    ("POST", "/v1/models/purge", is_plain),
    ("GET", "/v1/jobs/a", is_plain),
]


@pytest.mark.parametrize(("method", "path", "shaped"), SHAPES)
def test_a_wrong_key_is_told_in_the_dialects_words(
    locked: Served, method: str, path: str, shaped: Callable[[Answer], bool]
) -> None:
    """A client that cannot read why would blame the network."""
    answer = ask(locked, method, path, key="wrong")
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert shaped(answer), answer.body


FAULTS = [
    ("GET", "/v1/models/nobody", 404, "model_not_found", is_openais),
    ("POST", "/hf/no-such-task", 404, "not_found", is_hugging_faces),
    ("POST", "/sdapi/v1/options", 400, "invalid_json", is_the_web_uis),
    ("POST", "/lora/load", 400, "invalid_json", is_plain),
    ("POST", "/v1/models/purge", 400, "invalid_json", is_plain),
    ("GET", "/v1/jobs/a", 410, "expired", is_plain),
    ("GET", "/files/im_00000000.png", 404, "not_found", is_plain),
    ("GET", "/nothing", 404, "not_found", is_plain),
    ("GET", "/run", 405, "method_not_allowed", is_plain),
]


@pytest.mark.parametrize(("method", "path", "status", "code", "shaped"), FAULTS)
def test_what_cannot_be_done_is_told_and_logged(
    locked: Served,
    method: str,
    path: str,
    status: int,
    code: str,
    shaped: Callable[[Answer], bool],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The line in the log has the code that the caller read, under the id that the caller sent."""
    with caplog.at_level(logging.DEBUG, "batchmux.api"):
        answer = ask(locked, method, path, body=b"{")
    assert (answer.status, answer.headers["x-request-id"]) == (status, "mine")
    assert shaped(answer), answer.body
    (line,) = lines(caplog)
    assert (line["request"], line["code"], line["status"]) == ("mine", code, str(status))


def test_a_server_that_is_not_ready_says_so_to_hugging_faces_clients() -> None:
    """With the time after which to ask again."""
    with serving() as running:
        running.probe.say("loading")
        answer = ask(running, "GET", "/hf/text-to-image/health")
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert is_hugging_faces(answer)


def test_an_absent_file_is_not_remembered(locked: Served) -> None:
    """A cache would go on saying so after the file is there."""
    assert ask(locked, "GET", "/files/im_00000000.png").headers["cache-control"] == "no-store"


def test_a_fault_nobody_foresaw_is_answered_and_counted_as_a_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where no picture is made: a status of nothing would show in no alarm."""

    async def purge(name: str | None) -> tuple[int, int]:
        raise KeyError("/secret/path")

    with serving(purge=purge) as running, caplog.at_level(logging.INFO, "batchmux.api"):
        answer = ask(running, "POST", "/v1/models/purge")
    assert (answer.status, answer.json()["code"]) == (500, "pipeline_error")
    assert b"secret" not in answer.body
    assert "KeyError" in caplog.text
    assert lines(caplog)[-1]["code"] == "pipeline_error"


def test_a_probe_that_fails_is_counted_as_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    """It has no dialect, and an answer all the same."""
    with serving() as running, caplog.at_level(logging.DEBUG, "batchmux.api"):
        running.probe.health = None  # type: ignore[assignment]
        answer = running.client.get("/ready")
    assert (answer.status, answer.json()["code"]) == (500, "pipeline_error")
    assert (lines(caplog)[-1]["status"], lines(caplog)[-1]["code"]) == ("500", "pipeline_error")
