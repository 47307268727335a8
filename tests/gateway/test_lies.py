"""Servers that break HTTP's rules: the caller gets the answer whole, sees it break off, or is told of it."""

import pytest

from tests.gateway.fronting import Fronted, fronting, until
from tests.gateway.test_passing import EDIT, JSON, telling

OK = b"HTTP/1.1 200 OK\r\n"


def exchanged(fronted: Fronted, sent: bytes) -> bytes:
    """All that comes back until the other side closes the connection."""
    got = b""
    with fronted.client.socket() as caller:
        caller.sendall(sent)
        while chunk := caller.recv(65536):
            got += chunk
    return got


@pytest.mark.parametrize(
    "reply",
    [
        OK + b'Transfer-Encoding: chunked, gzip\r\n\r\n{"image":',
        OK + b'Transfer-Encoding: unchunked\r\n\r\n{"image":',
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 999 What\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 099 What\r\nContent-Length: 2\r\n\r\nok",
        OK + b"Content-Length: 2\r\nContent-Length: 9\r\n\r\nok",
        OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        OK + b"".join(b"X-%d: %s\r\n" % (number, b"a" * 500) for number in range(500)),
    ],
)
def test_what_is_no_answer_of_http_is_told_as_502(reply: bytes) -> None:
    """A coding after the chunks ends with the connection, so a cut would be a 200; a status is 200 to 599."""
    with telling(reply) as port, fronting([port]) as fronted:
        answer = fronted.client.request("POST", "/run", EDIT, JSON)
    assert (answer.status, answer.json()["code"]) == (502, "upstream_error")


@pytest.mark.parametrize("status", [b"304 Not Modified", b"204 No Content"])
def test_an_answer_without_a_body_needs_no_length(status: bytes) -> None:
    """A 304 names that of the body which it does not have; the connection goes on."""
    reply = b"HTTP/1.1 %s\r\nContent-Length: 500\r\n\r\n" % status
    with telling(reply) as port, fronting([port]) as fronted:
        twice = (
            b"GET /x HTTP/1.1\r\nHost: g\r\n\r\nGET /live HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n"
        )
        got = exchanged(fronted, twice)
    assert got.startswith(b"HTTP/1.1 " + status)
    assert got.endswith(b'{"status":"alive"}')


def test_events_that_break_off_break_off() -> None:
    """Without the last chunk nobody can take the half for the whole."""
    half = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n7\r\ndata: 1\r\n"
    with telling(half) as port, fronting([port]) as fronted:
        got = exchanged(fronted, b"POST /generate-stream HTTP/1.1\r\nHost: g\r\nContent-Length: 2\r\n\r\n{}")
        assert got.endswith(b"7\r\ndata: 1\r\n")
        until(lambda: fronted.gateway.fleet.balancer.standings[0].errors == 1)


def test_what_follows_an_answer_is_nobodys() -> None:
    """Bytes beyond the declared length would be the next caller's answer."""
    reply = OK + b"Content-Length: 2\r\n\r\nok" + OK + b"Content-Length: 6\r\n\r\npoison"
    with telling(reply) as port, fronting([port]) as fronted:
        assert [fronted.client.get("/x").body for _ in range(3)] == [b"ok"] * 3
