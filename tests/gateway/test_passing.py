"""What passes through the gateway, in both directions, and what does not."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from api.gate import AccessOptions
from api.keys import KeyRing
from core.errors import CapacityError
from tests.api.serving import Served, serving
from tests.gateway.fronting import PICTURE, SMALL, Fronted, fronting, until

JSON = {"Content-Type": "application/json"}
EDIT = json.dumps({"input": {"prompt": "paint", "image_base64": PICTURE, "seed": 7, **SMALL}}).encode()


@pytest.fixture
def pair() -> Iterator[tuple[Fronted, Served]]:
    with serving() as worker, fronting([worker.client.port]) as fronted:
        until(lambda: bool(fronted.gateway.fleet.seen))
        yield fronted, worker


class Told(http.server.BaseHTTPRequestHandler):
    """Answers with the headers that it was sent, after what the test put in ``reply``."""

    protocol_version = "HTTP/1.1"
    reply: bytes | None = None
    everywhere: bool = False  # in answer to health checks, too

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.rfile.read(length)
        if self.reply is not None and (self.everywhere or self.path != "/health"):
            self.wfile.write(self.reply)
            self.close_connection = True
            return
        body = json.dumps({"path": self.path, "headers": self.headers.items(), "state": "ready"}).encode()
        self.send_response(200)
        for name, value in (("Content-Length", str(len(body))), ("Keep-Alive", "timeout=5"), ("X-Own", "1")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def telling(reply: bytes | None = None, *, everywhere: bool = False) -> Iterator[int]:
    handler = type("Handler", (Told,), {"reply": reply, "everywhere": everywhere})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join(10)


def sent_headers(fronted: Fronted, headers: dict[str, str]) -> dict[str, str]:
    answer = fronted.client.request("POST", "/anything?a=%2F&b", b"{}", headers)
    assert answer.json()["path"] == "/anything?a=%2F&b"
    return {name.lower(): value for name, value in answer.json()["headers"]}


def test_identifiers_go_on_and_hop_by_hop_headers_stay() -> None:
    """A trace must not end at the gateway; what concerns one connection must."""
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with telling() as port, fronting([port]) as fronted:
        seen = sent_headers(
            fronted,
            {
                **{"X-Request-Id": "mine-1", "traceparent": trace, "X-Custom": "kept", "Accept": "image/png"},
                **{"Connection": "X-Secret-Hop", "X-Secret-Hop": "1", "TE": "trailers", "Keep-Alive": "1"},
            },
        )
        answer = fronted.client.get("/x")
    assert (seen["x-request-id"], seen["traceparent"], seen["x-custom"]) == ("mine-1", trace, "kept")
    assert seen["accept"] == "image/png"
    assert not {"x-secret-hop", "te", "keep-alive"} & seen.keys()
    assert seen["host"] == f"127.0.0.1:{fronted.client.port}"
    assert seen["via"].startswith("1.1 batchmux-gateway-")
    assert "keep-alive" not in answer.headers
    assert answer.headers["x-own"] == "1"


@pytest.mark.parametrize(("key", "expected"), [("", "Bearer caller"), ("operators", "Bearer operators")])
def test_a_servers_own_key_takes_the_place_of_the_callers(key: str, expected: str) -> None:
    """A caller's key is for the gateway where the operator gave the server another."""
    with telling() as port, fronting([port], key=key) as fronted:
        seen = sent_headers(
            fronted, {"Authorization": "Bearer caller", "X-API-Key": "caller", "Cookie": "c=1"}
        )
    assert seen["authorization"] == expected
    assert ("x-api-key" in seen, "cookie" in seen) == (not key, not key)


def test_answers_are_those_of_the_worker_byte_for_byte(pair: tuple[Fronted, Served]) -> None:
    """Each dialect's clients must not notice the gateway."""
    fronted, worker = pair
    generation = b'{"prompt":"x","model":"artist","size":"64x64","seed":1,"response_format":"b64_json"}'
    hostile = b'{"input": {"prompt": NaN}}'
    asked = [
        *(("POST", "/run", EDIT), ("POST", "/runsync", EDIT), ("POST", "/run", hostile)),
        *(
            ("GET", "/v1/models", b""),
            ("GET", "/v1/models/org/painter", b""),
            ("GET", "/sdapi/v1/options", b""),
        ),
        *(("POST", "/v1/images/generations", generation), ("POST", "/v1/generate", b"{}")),
        *(
            ("POST", "/hf/text-to-image", b'{"inputs":"x","parameters":{"seed":1}}'),
            ("GET", "/files/none", b""),
            ("GET", "/nowhere", b""),
        ),
        *(("POST", "/inference/sam3", b"{}"), ("GET", "/models/status", b""), ("PUT", "/run", b"")),
    ]
    for method, path, body in asked:
        headers = JSON | {"X-Request-Id": "same"}
        direct = worker.client.request(method, path, body or None, headers)
        through = fronted.client.request(method, path, body or None, headers)
        assert (through.status, through.headers.get("content-type")) == (
            direct.status,
            direct.headers.get("content-type"),
        ), path
        if b'"created":' not in direct.body:
            assert through.body == direct.body, path


def test_a_large_body_passes_in_pieces(pair: tuple[Fronted, Served]) -> None:
    """More than the gateway ever holds of one."""
    fronted, _ = pair
    padded = EDIT[:-1] + b" " * 3_000_000 + b"}"
    assert len(padded) > 3_000_000
    answer = fronted.client.request("POST", "/run", padded, JSON)
    assert answer.status in (200, 400)  # the worker's own limit of what stands beside pictures
    assert fronted.client.request("POST", "/run", EDIT, JSON).status == 200


def test_a_body_over_the_limit_is_refused_unread(pair: tuple[Fronted, Served]) -> None:
    """By its declared length."""
    fronted, _ = pair
    with fronted.client.socket() as caller:
        caller.sendall(b"POST /run HTTP/1.1\r\nHost: g\r\nContent-Length: 999999999\r\n\r\n")
        assert b" 413 " in caller.recv(4096)


def test_progress_passes_as_it_comes(pair: tuple[Fronted, Served]) -> None:
    """The first event is there while the job still runs."""
    fronted, worker = pair
    worker.painter.shut()
    body = b'{"prompt":"x","width":256,"height":256}'
    with fronted.client.socket() as caller:
        caller.sendall(
            b"POST /generate-stream HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        got = b""
        while b'"type":"queued"' not in got:
            got += caller.recv(4096)
        assert b"text/event-stream" in got
        worker.painter.open()
        while b'"type":"complete"' not in got:
            got += caller.recv(65536)


def test_a_caller_who_leaves_is_gone_at_the_worker_too(pair: tuple[Fronted, Served]) -> None:
    """A job that nobody waits for must not hold a row of a batch."""
    fronted, worker = pair
    worker.painter.shut()
    with fronted.client.socket() as caller:
        head = (
            b"POST /run HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        caller.sendall(head % len(EDIT) + EDIT)
        worker.painter.entered.get(timeout=10)
    assert worker.painter.cancelled.get(timeout=10)
    until(lambda: fronted.gateway.fleet.under_way == 0)
    assert fronted.gateway.fleet.balancer.standings[0].failures == 0


def test_a_circle_is_seen(pair: tuple[Fronted, Served]) -> None:
    """A gateway that is its own server would ask itself until nothing is left."""
    fronted, _ = pair
    own = fronted.gateway.options.own_id
    answer = fronted.client.request(
        "POST", "/run", EDIT, JSON | {"Via": f"1.1 x, 1.1 batchmux-gateway-{own}"}
    )
    assert (answer.status, answer.json()["code"]) == (502, "upstream_error")
    many = ", ".join(f"1.1 batchmux-gateway-{number:016x}" for number in range(4))
    assert fronted.client.request("GET", "/health", None, {"Via": many}).status == 502
    assert fronted.client.request("POST", "/run", EDIT, JSON | {"Via": "1.1 nginx"}).status == 200


def test_two_gateways_that_name_each_other_give_up() -> None:
    """The same, with real requests going round."""
    with fronting([1]) as first, fronting([first.client.port]) as second:
        port = second.client.port
        first.soon(
            lambda: first.gateway.fleet.add(first.gateway.options.upstream(f"http://127.0.0.1:{port}"))
        )
        until(lambda: len(first.gateway.fleet.upstreams) == 2)
        answer = first.client.request("POST", "/run", EDIT, JSON)
    assert answer.status in (502, 503)


@pytest.mark.parametrize(
    "reply",
    [
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"image":',
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"",
    ],
)
def test_an_answer_whose_end_cannot_be_told_is_none(reply: bytes) -> None:
    """Without a length or chunks a cut looks like an end; what was cut before its first byte is told of."""
    with telling(reply) as port, fronting([port]) as fronted:
        answer = fronted.client.request("POST", "/run", EDIT, JSON)
    assert (answer.status, answer.json()["code"]) == (502, "upstream_error")


def test_the_queue_of_the_server_is_full(pair: tuple[Fronted, Served]) -> None:
    """The server's sentence, as the text-to-image gateway words it, and when to come back."""
    fronted, worker = pair
    worker.painter.refusal = CapacityError("queue_full", "256 requests wait already", retry_after=7)
    answer = fronted.client.request("POST", "/generate", b'{"prompt":"x"}', JSON)
    assert answer.status == 503
    assert answer.headers["retry-after"] == "7"
    said = "Request queue is full (max 256). Please try again later."
    assert answer.json()["detail"] == f"Text-to-image server error: {said}"
    assert fronted.client.request("POST", "/run", EDIT, JSON).status == 429


def test_the_server_is_slow() -> None:
    """504 and the contract's sentence once REQUEST_TIMEOUT is over; the worker's job is cancelled."""
    with serving() as worker, fronting([worker.client.port], timeout=0.5) as fronted:
        worker.painter.shut()
        answer = fronted.client.request("POST", "/generate", b'{"prompt":"x"}', JSON)
        assert (answer.status, answer.json()["detail"]) == (504, "Request to text-to-image server timed out")
        assert answer.headers["x-should-retry"] == "false"
        assert worker.painter.cancelled.get(timeout=10)


def test_a_field_out_of_range_is_422(pair: tuple[Fronted, Served]) -> None:
    """As the gateway's own validation said it."""
    fronted, _ = pair
    answer = fronted.client.request("POST", "/generate", b'{"prompt":"x","width":64}', JSON)
    assert answer.status == 422
    assert isinstance(answer.json()["detail"], list)


def test_what_finds_no_room_waits_in_order_and_no_further_than_the_limit() -> None:
    """MAX_CONCURRENT_REQUESTS at each server; beyond MAX_QUEUE nobody waits."""
    with serving() as worker, fronting([worker.client.port], max_concurrent=1, max_waiting=1) as fronted:
        worker.painter.shut()
        answers: list[int] = []
        callers = [
            threading.Thread(
                target=lambda: answers.append(fronted.client.request("POST", "/run", EDIT, JSON).status)
            )
            for _ in range(2)
        ]
        for caller in callers:
            caller.start()
        until(lambda: fronted.gateway.fleet.waiting == 1)
        refused = fronted.client.request("POST", "/run", EDIT, JSON)
        assert (refused.status, refused.json()["code"]) == (429, "queue_full")
        until(lambda: worker.painter.entered.qsize() == 1)
        assert fronted.client.get("/health").json()["text2image_server"]["current_queue_size"] == 1
        worker.painter.open()
        for caller in callers:
            caller.join(20)
        assert answers == [200, 200]


def test_a_model_stays_with_the_worker_that_used_it() -> None:
    """A second worker would have to load it."""
    with serving() as one, serving() as two, fronting([one.client.port, two.client.port]) as fronted:
        until(lambda: len(fronted.gateway.fleet.seen) == 2)
        body = json.dumps({"input": {"prompt": "x", "model": "dreamer", **SMALL}}).encode()
        for _ in range(6):
            assert fronted.client.request("POST", "/run", body, JSON).status == 200
        assert sorted((one.painter.entered.qsize(), two.painter.entered.qsize())) == [0, 6]


def test_without_a_key_nobody_gets_in_but_to_the_probes() -> None:
    """Default-deny; the key's owner is told apart by the worker, which is sent the same key."""
    ring = KeyRing.of(True, ["one", "two"])
    with (
        serving(access=AccessOptions(keys=ring)) as worker,
        fronting([worker.client.port], keys=ring) as fronted,
    ):
        for path in ("/run", "/nowhere", "/v1/models", "/jobs", "/gateway/upstreams"):
            assert fronted.client.get(path).status == 401, path
        for path in ("/", "/health", "/metrics", "/live", "/ready"):
            assert fronted.client.get(path).status == 200, path
        assert fronted.client.request("POST", "/run", EDIT, JSON | {"X-API-Key": "two"}).status == 200


def test_a_body_that_grows_over_the_limit_is_refused() -> None:
    """In chunks it declares no length; the server, which has seen a part of it, is not blamed."""
    with serving() as worker, fronting([worker.client.port], max_body_bytes=200_000) as fronted:
        with fronted.client.socket() as caller:
            caller.sendall(b"POST /run HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(5):
                caller.sendall(b"c350\r\n" + b" " * 0xC350 + b"\r\n")
            got = caller.recv(4096)
        assert b" 413 " in got
        assert fronted.gateway.fleet.balancer.standings[0].failures == 0


def test_one_that_is_full_does_not_hold_up_the_other() -> None:
    """A refusal before the body costs one round trip; when all are full, it is passed on at once."""
    with serving() as one, serving() as two, fronting([one.client.port, two.client.port]) as fronted:
        until(lambda: len(fronted.gateway.fleet.seen) == 2)
        one.painter.refusal = CapacityError("queue_full", "256 requests wait already", retry_after=7)
        for _ in range(4):
            assert fronted.client.request("POST", "/run", EDIT, JSON).status == 200
        two.painter.refusal = CapacityError("queue_full", "256 requests wait already", retry_after=9)
        answer = fronted.client.request("POST", "/run", EDIT, JSON)
        assert answer.status == 429
        assert answer.headers["retry-after"] in ("7", "9")
        until(lambda: fronted.gateway.fleet.under_way == 0)


def test_the_text_to_image_servers_own_health_is_understood() -> None:
    """It has other words than ours."""
    body = b'{"status":"unhealthy","model_loaded":false,"cuda_available":true,"current_queue_size":3}'
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with telling(reply, everywhere=True) as port, fronting([port]) as fronted:
        until(lambda: bool(fronted.gateway.fleet.seen))
        health = fronted.client.get("/health").json()
    assert (health["status"], health["text2image_server"]["status"]) == ("unhealthy", "error")
