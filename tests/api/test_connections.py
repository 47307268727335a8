"""Connections that nobody friendly opens, by raw sockets: doubtful framing, slow senders, deaf readers.

None is answered twice, none stays for ever and none stalls the others.
"""

import json
import re
import socket
import threading
import time
from contextlib import suppress

import pytest

from api.app import ApiOptions
from api.intake import IntakeOptions
from api.server import ServerOptions
from tests.api.serving import INSIDE, Served, png, serving, text

PICTURE = text(png())
BODY = json.dumps({"input": {"prompt": "p", "image_base64": PICTURE}}).encode()
MEBIBYTE = 2**20


def receive_all(connection: socket.socket) -> bytes:
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", received)]


RAW = {
    "no http": (b"\x16\x03\x01\x02\x00\x01\x00", {400}),
    "no version": (b"GET /\r\n\r\n", {200, 400}),
    "bare line feeds in a header": (b"GET /live HTTP/1.1\r\nHost: x\nX: y\r\n\r\n", {400}),
    "two lengths": (
        b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        {400},
    ),
    "signed length": (b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n12345", {400}),
    "negative length": (b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", {400}),
    "endless length": (b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n", {400}),
    "length over the cap": (b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n", {413}),
    "length and chunks": (
        b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET /canary HTTP/1.1\r\nHost: x\r\n\r\n",
        {400},
    ),
    "chunked twice": (
        b"POST /run HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        {400},
    ),
    "hidden chunked": (
        b"POST /run HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n"
        b"0\r\n\r\nGET /canary HTTP/1.1\r\n\r\n",
        {400},
    ),
    "chunk size of its own": (
        b"POST /run HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        {400, 408},
    ),
    "huge chunk size": (
        b"POST /run HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n",
        {400},
    ),
    "header with a zero": (b"GET /live HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n", {400}),
    "space before the colon": (b"GET /live HTTP/1.1\r\nHost : x\r\n\r\n", {400}),
    "folded header": (b"GET /live HTTP/1.1\r\nHost: x\r\n X: y\r\n\r\n", {400}),
    "raw bytes in the path": (b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", {400, 404}),
    "path up": (b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {404}),
    "encoded zero": (b"GET /%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {404}),
    "websocket": (
        b"GET /run HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        {405},
    ),
    "proxy request": (
        b"GET http://127.0.0.1/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        {200, 400, 404},
    ),
    "connect": (b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {400, 404, 405}),
    "http/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 404, 405, 505}),
}


@pytest.mark.parametrize("name", RAW)
def test_a_request_of_doubtful_framing_is_answered_once_or_not_at_all(name: str, guarded: Served) -> None:
    """Two answers to one request is how a request is smuggled past a proxy."""
    request, allowed = RAW[name]
    with guarded.client.socket() as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR) if name == "no http" else None
        received = receive_all(connection)
    found = statuses(received)
    assert len(found) <= 1, received
    assert set(found) <= allowed
    assert b"canary" not in received
    assert not INSIDE.search(received)
    assert guarded.client.get("/live").status == 200


def test_a_body_over_the_cap_is_refused_before_it_is_sent(guarded: Served) -> None:
    """curl asks first with Expect: 100-continue; no 100 may come, and the connection is not used again."""
    with guarded.client.socket() as connection:
        connection.sendall(
            b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\nExpect: 100-continue\r\n\r\n"
        )
        received = receive_all(connection)
    assert statuses(received) == [413]
    assert b"connection: close" in received.lower()


def test_an_endless_chunked_body_is_cut_off(guarded: Served) -> None:
    """Answered with 413 although the caller never stops, and then dropped."""
    received = b""
    with guarded.client.socket() as connection:
        connection.sendall(b"POST /run HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        part = b"10000\r\n" + b" " * 65536 + b"\r\n"
        with suppress(ConnectionError):
            while True:
                connection.sendall(part)
                connection.setblocking(False)
                with suppress(BlockingIOError):
                    received += connection.recv(65536)
                connection.settimeout(20)
    assert statuses(received) == [413]


def drip(connection: socket.socket, data: bytes, stop: threading.Event) -> None:
    """One byte every 20 ms until the other side has had enough."""
    for at in range(len(data)):
        try:
            connection.sendall(data[at : at + 1])
        except OSError:
            return
        if stop.wait(0.02):
            return


@pytest.mark.parametrize(
    ("start", "rest", "expected"),
    [
        pytest.param(b"", b"GET /live HTTP/1.1\r\nX: " + b"a" * 1000, [], id="headers"),
        pytest.param(b"", b"\r\n" * 500, [], id="empty lines"),
        pytest.param(
            b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n" * 500, [200], id="lines after a request"
        ),
        pytest.param(
            b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", b" " * 999, [408], id="body"
        ),
        pytest.param(
            b"POST /run HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"1\r\n \r\n" * 200,
            [408],
            id="chunks",
        ),
        pytest.param(
            b"POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
            b" " * 999,
            [404],
            id="unread body",
        ),
        pytest.param(b"", b"", [], id="silence"),
    ],
)
def test_a_slow_caller_is_dropped(start: bytes, rest: bytes, expected: list[int], impatient: Served) -> None:
    """At the limit (30 s outside this test), however alive it keeps looking."""
    stop = threading.Event()
    with impatient.client.socket() as connection:
        connection.sendall(start)
        sender = threading.Thread(target=drip, args=(connection, rest, stop))
        sender.start()
        received = receive_all(connection)  # ends when the server has had enough; the test would in 20 s
        stop.set()
        sender.join(5)
    assert statuses(received) == expected


def test_a_caller_who_never_reads_is_dropped() -> None:
    """Its answer would fill memory for ever. Noise of 2048 x 2048 is more than any socket buffers."""
    with serving(server=ServerOptions(stall_seconds=0.2)) as running:
        running.painter.noise = True
        body = json.dumps({"input": {"prompt": "p", "image_base64": PICTURE, "width": 2048, "height": 2048}})
        with running.client.socket() as connection:
            connection.sendall(
                b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body.encode()
            )
            running.painter.entered.get(timeout=10)
            deadline = time.monotonic() + 10
            while running.connections() and time.monotonic() < deadline:
                running.client.get("/live")
            received = receive_all(connection)
    head, _, rest = received.partition(b"\r\n\r\n")
    declared = re.search(rb"content-length: (\d+)", head)
    assert declared is not None
    assert len(rest) < int(declared[1])


def test_headers_without_end_are_cut_off(guarded: Served) -> None:
    """No parser of ours limits them by itself."""
    with guarded.client.socket() as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\n")
        with suppress(ConnectionError):
            while True:
                connection.sendall(b"X-Filler: " + b"a" * 8000 + b"\r\n")
        assert 200 not in statuses(receive_all(connection))


@pytest.mark.parametrize("name", [b"X-Filler: ", b"X" * 70_000 + b": "])
def test_headers_over_the_limit_are_refused_though_they_come_at_once(name: bytes, guarded: Served) -> None:
    """One read takes up to 256 KB, so that nothing is left to wait for when they are counted."""
    request = b"GET /live HTTP/1.1\r\nHost: x\r\n" + (name + b"a" * 7000 + b"\r\n") * 12
    with guarded.client.socket() as connection:
        connection.sendall(request + b"Connection: close\r\n\r\n")
        assert 200 not in statuses(receive_all(connection))
    with guarded.client.socket() as connection:
        connection.sendall(b"GET /live?" + b"a" * 70_000 + b" HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert 200 not in statuses(receive_all(connection))
    with guarded.client.socket() as connection:  # the control
        small = b"GET /live HTTP/1.1\r\nX: " + b"a" * 50_000 + b"\r\nConnection: close\r\n\r\n"
        connection.sendall(small)
        assert statuses(receive_all(connection)) == [200]


def test_idle_uploads_keep_nobody_out() -> None:
    """Each declares half of what may be held and sends one byte."""
    with serving(images=IntakeOptions(held_bytes=8 * MEBIBYTE)) as running:
        idle = [running.client.socket() for _ in range(10)]
        for connection in idle:
            connection.sendall(b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: 4194304\r\n\r\n{")
        assert running.client.request("POST", "/run", BODY).status == 200
        for connection in idle:
            connection.close()


def test_an_upload_that_stands_still_is_given_up_and_a_slow_one_is_not() -> None:
    """A telephone's is slow; what counts is whether anything comes."""
    with serving(ApiOptions(body_stall_seconds=1)) as running:
        body = BODY
        opening = b"POST /run HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(
            body
        )
        with running.client.socket() as still, running.client.socket() as slow:
            still.sendall(opening + body[:100])
            slow.sendall(opening + body[:-100])
            drip(slow, body[-100:], threading.Event())  # two seconds
            assert statuses(receive_all(slow)) == [200]
            assert statuses(receive_all(still)) == [408]


def test_connections_over_the_limit_are_told_at_once() -> None:
    """Better than a full table of descriptors."""
    with serving(server=ServerOptions(max_connections=3)) as running:
        held = [running.client.socket() for _ in range(3)]
        for connection in held:
            connection.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in connection.recv(4096)
        with running.client.socket() as extra:
            assert statuses(receive_all(extra)) == [503]
        held.pop().close()
        for connection in held:
            connection.close()


def test_slow_and_broken_callers_stall_nobody() -> None:
    """A hundred of them hang about while a friendly one gets its answers."""
    with serving() as running:
        hanging = [running.client.socket() for _ in range(100)]
        for at, connection in enumerate(hanging):
            opening = (
                b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{" if at % 2 else b"GET /li"
            )
            connection.sendall(opening)
        for _ in range(5):  # each within the client's own 20 s, while the hanging ones have 30
            assert running.client.run({"prompt": "p", "image_base64": PICTURE}).status == 200
        for connection in hanging:
            connection.close()


def test_overload_is_refused_before_the_body() -> None:
    """What is held already is the limit; the refused body is never read."""
    with serving(images=IntakeOptions(held_bytes=100_000)) as running, running.client.socket() as holding:
        holding.sendall(b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n{")
        deadline = time.monotonic() + 5
        while running.client.request("POST", "/run", b" " * 20_000).status != 429:
            assert time.monotonic() < deadline
        with running.client.socket() as refused:  # its body never comes, and the answer does
            refused.sendall(b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n")
            answer = refused.recv(4096)
    assert statuses(answer) == [429]
    assert b"retry-after: 1" in answer.lower()


OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"


def test_an_offer_of_http2_is_passed_over(served: Served) -> None:
    """Java's own client makes it with its first request: body and all, that is answered as if it had not."""
    head = b"POST /run HTTP/1.1\r\nHost: x\r\n%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    closing = b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with served.client.socket() as connection:
        connection.sendall(head % (OFFER, len(BODY)) + BODY + closing)
        assert statuses(receive_all(connection)) == [200, 200]


def test_a_body_behind_any_other_offer_is_refused(served: Served) -> None:
    """The parser would drop it and read on behind the head, as if what follows were a request."""
    inner = b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    for offer in (b"Upgrade: another\r\n", b"Upgrade: h2c, another\r\n"):
        head = b"POST /run HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n%sContent-Length: %d\r\n\r\n"
        with served.client.socket() as connection:
            connection.sendall(head % (offer, len(inner)) + inner)
            assert statuses(receive_all(connection)) == [400]


def test_an_offer_in_pieces_is_refused_and_not_misread(served: Served) -> None:
    """The offer is only seen where the head comes whole; elsewhere no body may pass for a request."""
    head = (
        b"POST /run HTTP/1.1\r\nHost: x\r\n" + OFFER + b"Connection: close\r\nContent-Length: 5\r\n\r\nGET /"
    )
    with served.client.socket() as connection:
        connection.sendall(head[:40])
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(head[40:])
        assert set(statuses(receive_all(connection))) <= {400, 422}
