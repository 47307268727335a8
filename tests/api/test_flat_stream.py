"""The flat dialect told as events, for callers that show how far it is."""

import json
from typing import Any

import pytest

from core.errors import CapacityError, DeviceLost
from tests.api.serving import Answer, Served, paint, png, text

WISHES = {"prompt": "a fox", "model": "dreamer", "seed": 9, "width": 64, "height": 64}
ACCEPT = {"Accept": "text/event-stream, application/json"}


def events(answer: Answer) -> list[tuple[str, Any]]:
    pieces = [piece.partition(b"\ndata: ") for piece in answer.body.split(b"\n\n") if piece]
    return [(name.decode().removeprefix("event: "), json.loads(data)) for name, _, data in pieces]


def test_progress_then_the_usual_answer(served: Served) -> None:
    """The last event holds what a caller without events gets."""
    answer = served.client.run(WISHES, "/runsync", ACCEPT)
    assert (answer.status, answer.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
    told = events(answer)
    assert [name for name, _ in told] == ["progress", "done"]
    assert told[0][1] == {"state": "queued", "step": 0, "steps": 40, "position": None}
    assert told[1][1] == served.client.run(WISHES, "/runsync").json()


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html"])
def test_nobody_else_gets_events(served: Served, accept: str) -> None:
    """Clients of the plain contract send any of these and read JSON."""
    answer = served.client.run(WISHES, "/runsync", {"Accept": accept})
    assert answer.headers["content-type"] == "application/json"
    assert answer.picture().getpixel((0, 0)) == tuple(paint(9))


def test_a_refusal_before_the_work_is_a_status(served: Served) -> None:
    """It says more than an event does."""
    answer = served.client.run({"prompt": "x", "image": text(png()), "model": "dreamer"}, "/runsync", ACCEPT)
    assert answer.status == 422
    assert answer.json()["param"] == "images"


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [(DeviceLost(), 503, "device_lost"), (CapacityError("shutting_down", "bye"), 503, "shutting_down")],
)
def test_a_failure_of_the_work_is_an_event(fresh: Served, fault: Exception, status: int, code: str) -> None:
    """The status line is long gone by then, so the event carries what it would have been."""
    fresh.painter.shut()
    with fresh.client.socket() as connection:
        body = json.dumps({"input": WISHES}).encode()
        head = (
            "POST /runsync HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nConnection: close\r\n"
            f"X-Request-Id: mine\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        got = b""
        while b"event: progress" not in got:
            got += connection.recv(65536)
        fresh.painter.fault = fault
        fresh.painter.open()
        while more := connection.recv(65536):
            got += more
    data = got.partition(b"event: error\ndata: ")[2].partition(b"\n\n")[0]
    told = json.loads(data)
    assert (told["status"], told["code"], told["request_id"]) == (status, code, "mine")
