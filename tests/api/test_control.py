"""Requests that compute no picture keep every limit of those that do."""

import asyncio
import threading

from core.errors import CapacityError
from tests.api.serving import Served, serving

PURGE = "/v1/models/purge"


def test_a_body_far_over_any_need_is_not_read(served: Served) -> None:
    """It is refused by its declared length; the body never comes, and the answer does."""
    with served.client.socket() as caller:
        caller.sendall(f"POST {PURGE} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode())
        assert caller.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_slow_body_is_given_up(impatient: Served) -> None:
    """And so is its connection: what is left of the body may never come."""
    with impatient.client.socket() as caller:
        caller.sendall(f"POST {PURGE} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{{".encode())
        answer = caller.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()


def test_the_callers_id_comes_back(served: Served) -> None:
    """By which a caller finds the request in the server's log."""
    answer = served.client.request("POST", PURGE, None, {"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"


def test_a_refusal_says_when_to_come_back() -> None:
    """As everywhere."""

    async def purge(name: str | None) -> tuple[int, int]:
        raise CapacityError("shutting_down", "bye", retry_after=7)

    with serving(purge=purge) as running:
        answer = running.client.request("POST", PURGE)
    assert (answer.status, answer.headers["retry-after"]) == (503, "7")


def test_work_ends_when_its_caller_leaves() -> None:
    """A purge that still waits for the device is then not carried out."""
    entered, cancelled = threading.Event(), threading.Event()

    async def purge(name: str | None) -> tuple[int, int]:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return 0, 0

    with serving(purge=purge) as running:
        with running.client.socket() as caller:
            caller.sendall(f"POST {PURGE} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
            assert entered.wait(10)
        assert cancelled.wait(10)
