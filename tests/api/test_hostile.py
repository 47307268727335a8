"""What nobody friendly sends: a table over real sockets. None answers 500, stalls others or looks inside."""

import io
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress

import pytest
from PIL import Image as Pillow

from api.app import ApiOptions
from api.errors import STATUS
from api.images import ImageLimits
from api.intake import IntakeOptions
from api.server import ServerOptions
from tests.api.remote import Canary
from tests.api.serving import Answer, Served, png, serving, text

SECRET = "hunter2-0451"
PICTURE = text(png())
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    """Small limits of size; those of time only end what never comes, so a busy machine meets none."""
    with serving(
        ApiOptions(max_body_bytes=2 * MEBIBYTE, body_seconds=5, body_stall_seconds=5),
        IntakeOptions(limits=ImageLimits(max_bytes=MEBIBYTE, max_pixels=4_000_000), codec_threads=2),
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


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(side: int, content: bytes = b"") -> str:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return text(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))


def eps() -> str:
    out = io.BytesIO()
    Pillow.new("RGB", (8, 8)).save(out, "EPS")
    return text(out.getvalue())


def wish(**fields: object) -> bytes:
    return json.dumps({"input": {"prompt": "p", "image_base64": PICTURE, **fields}}).encode()


def raw(fields: str) -> bytes:
    """Fields as they are written, for what no JSON writer would write."""
    return f'{{"input": {{"prompt": "p", "image_base64": "{PICTURE}", {fields}}}}}'.encode()


BODIES = {
    "nothing": (b"", 400),
    "text": (b"hello", 400),
    "half": (wish()[:-10], 400),
    "null": (b"null", 422),
    "list": (b"[]", 422),
    "no input": (b"{}", 422),
    "input is text": (b'{"input": "x"}', 422),
    "input is null": (b'{"input": null}', 422),
    "latin-1": ('{"input": {"prompt": "é"}}'.encode("latin-1"), 400),
    "utf-16": ('{"input": {"prompt": "x"}}'.encode("utf-16"), 400),
    "zero bytes": (bytes(1000), 400),
    "nan": (raw('"true_cfg_scale": NaN'), 400),
    "minus infinity": (raw('"true_cfg_scale": -Infinity'), 400),
    "1e400": (raw('"true_cfg_scale": 1e400'), 400),
    "1e308": (raw('"true_cfg_scale": 1e308'), 422),
    "huge integer": (raw('"seed": ' + "9" * 400), 400),
    "large integer": (raw('"seed": 99999999999999999999'), 422),
    "negative width": (raw('"width": -8'), 422),
    "lone surrogate": (raw('"negative_prompt": "\\ud800"'), 400),
    "surrogates reversed": (raw('"negative_prompt": "\\udc00\\ud800"'), 400),
    "control character": (raw('"negative_prompt": "\x01"'), 400),
    "duplicate key": (raw('"seed": 1, "seed": 2'), 400),
    "duplicate input": (b'{"input": {}, "input": {}}', 400),
    "deep list": (b"[" * 500_000, 400),
    "deep object": (b'{"input":' * 100_000, 400),
    "deep field": (raw('"images": ' + "[" * 900 + "]" * 900), 422),
    "a million numbers": (b'{"input": [' + b"1," * 900_000 + b"1]}", 400),
    "true as number": (wish(seed=True), 422),
    "text as number": (wish(num_inference_steps="8"), 422),
    "fraction as number": (wish(width=512.5), 422),
    "list as prompt": (wish(prompt=["p"]), 422),
    "unknown field": (wish(num_inference_step=8), 422),
    "python in a name": (wish(__class__="x"), 422),
    "secret as name": (wish(**{SECRET: 1}), 422),
    "secret in prompt": (wish(prompt=SECRET * 1000), 422),
    "secret as model": (wish(model=SECRET), 404),
    "path as model": (wish(model="../../etc/passwd"), 404),
    "no picture": (b'{"input": {"prompt": "p"}}', 400),
    "many pictures": (wish(image_base64=None, images=[PICTURE] * 50), 422),
    "long prompt": (wish(prompt="x" * 100_000), 422),
    "long name": (b'{"input": {"' + b"x" * 100_000 + b'": 1}}', 400),
    "long base64 with a line break": (
        b'{"input": {"prompt": "p", "image": "' + b"QUJD" * 30_000 + b"\n" + b'"}}',
        422,
    ),
    "many texts of escapes": (
        b'{"input": ["' + b'","'.join([b"\\n" * 30_000] * 30) + b'"]}',
        400,
    ),
    "long text of escapes": (b'{"input": {"prompt": "p", "image": "' + b"\\t" * 90_000 + b'"}}', 422),
    "long text of lone surrogates": (raw('"negative_prompt": "' + "\\ud800" * 20_000 + '"'), 422),
    "long text of other letters": (wish(image_base64="\u00e9" * 60_000), 422),
    "long bytes that are no text": (b'{"input": {"prompt": "p", "image": "' + b"\xff" * 80_000 + b'"}}', 422),
    "not base64": (wish(image_base64="%" + SECRET), 422),
    "base64 of text": (wish(image_base64=text(b"hello " + SECRET.encode())), 422),
    "svg": (wish(image_base64=text(b"<svg xmlns='http://www.w3.org/2000/svg'/>")), 422),
    "eps": (wish(image_base64=eps()), 422),
    "pdf": (wish(image_base64=text(b"%PDF-1.7\n1 0 obj<<>>endobj")), 422),
    "truncated": (wish(image_base64=text(png(200, 200)[:-30])), 422),
    "bomb header": (wish(image_base64=bomb(50_000)), 413),
    "bomb": (wish(image_base64=bomb(50_000, zlib.compress(bytes(10**6)))), 413),
    "over the pixels": (wish(image_base64=bomb(2001)), 413),
    "within the pixels but empty": (wish(image_base64=bomb(2000)), 422),
    "zero by zero": (wish(image_base64=bomb(0)), 422),
    "over the image's bytes": (wish(image_base64="A" * (MEBIBYTE * 3 // 2 + 1)), 413),
    "over the body": (wish(prompt="x" * 2 * MEBIBYTE), 413),
    "text chunk bomb": (
        wish(
            image_base64=text(
                png()[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50 * MEBIBYTE), 9)) + png()[33:]
            )
        ),
        422,
    ),
    "long url": (wish(image_base64=None, image_url="http://a.example/" + "a" * 10_000), 422),
    "file url": (wish(image_base64=None, image_url="file:///etc/passwd"), 422),
    "huge width": (wish(width=2**40), 422),
    "tiny width": (wish(width=1), 422),
    "format of its own": (wish(output_format="../x"), 422),
    "endless timeout": (wish(timeout=1e300), 422),
}

INSIDE = re.compile(
    rb"Traceback|File \"|/usr/|/home/|/work|site-packages|\.py\b|PIL\.|0x[0-9a-f]{6}|127\.0\.0\.1"
)


def check_refusal(answer: Answer) -> None:
    """Small, in our form, with a known code, and nothing of the caller's or ours in it."""
    assert len(answer.body) <= 4096
    assert answer.json()["code"] in STATUS
    assert answer.headers["x-request-id"]
    assert SECRET.encode() not in answer.body
    assert not INSIDE.search(answer.body), answer.body


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_the_callers_fault(name: str, guarded: Served) -> None:
    """And the next request works."""
    body, status = BODIES[name]
    answer = guarded.client.request("POST", "/run", body, {"Content-Type": "application/json"})
    assert answer.status == status, answer.body
    check_refusal(answer)
    assert guarded.painter.entered.empty()
    assert guarded.client.get("/ready").status == 200


def test_a_friendly_body_passes(guarded: Served) -> None:
    """The control: what the table refuses is refused for its fault."""
    assert guarded.client.request("POST", "/run", wish()).status == 200
    guarded.painter.entered.get(timeout=5)


@pytest.mark.parametrize("field", ["image_url", "image_url_2", "image", "images", "image_base64"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0"])
def test_no_field_makes_the_server_look_inside(
    field: str, host: str, guarded: Served, canary: Canary
) -> None:
    """Every field that takes a picture takes a URL."""
    url = f"http://{host}:{canary.port}/{SECRET}"
    fields = {"prompt": "p", field: [url] if field == "images" else url}
    answer = guarded.client.run(fields)
    assert (answer.status, answer.json()["code"]) == (422, "url_not_allowed")
    check_refusal(answer)
    assert not canary.reached


def test_a_compressed_body_is_refused(guarded: Served) -> None:
    """Nothing is unpacked."""
    answer = guarded.client.request("POST", "/run", zlib.compress(wish()), {"Content-Encoding": "gzip"})
    assert answer.status == 415
    check_refusal(answer)


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
        assert running.client.request("POST", "/run", wish()).status == 200
        for connection in idle:
            connection.close()


def test_an_upload_that_stands_still_is_given_up_and_a_slow_one_is_not() -> None:
    """A telephone's is slow; what counts is whether anything comes."""
    with serving(ApiOptions(body_stall_seconds=1)) as running:
        body = wish()
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
