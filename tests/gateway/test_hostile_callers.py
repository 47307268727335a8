"""Callers who try to get at what is not theirs, or to take the gateway from the others."""

import json
from contextlib import suppress

import pytest

from api.keys import KeyRing
from core.errors import ExecutionError
from tests.api.serving import serving
from tests.gateway.fronting import ask, fronting, until
from tests.gateway.test_passing import sent_headers, telling

CALLER = {"X-API-Key": "caller"}


@pytest.mark.parametrize(
    "path",
    [
        *("/v2/a/../../v2/other/run", "/v2/a/%2e%2E/%2e./other/run", "/v2/a/..%2f..%2fother/run"),
        *("/files/../v1/models", "/files/..%5c..%5crun", "/files/./x", "/files/.."),
    ],
)
def test_no_path_climbs_out_of_what_it_names(path: str) -> None:
    """Proxies before a server resolve dots: another endpoint would be asked, with the operator's key."""
    with (
        telling() as port,
        fronting([f"http://127.0.0.1:{port}/v2/mine"], runpod_key="operators") as fronted,
    ):
        answer = fronted.client.request("POST", path, b"{}", CALLER)
        assert (answer.status, answer.json()["code"]) == (404, "not_found")
        kept = fronted.client.request("POST", "/v2/a/run", b"{}", CALLER).json()
    assert kept["path"] == "/v2/mine/run"


@pytest.mark.parametrize("value", ["käse", "x" * 8000])
def test_header_values_arrive_as_they_were_written(value: str) -> None:
    """In UTF-8, as most programs write what is not ASCII."""
    with telling() as port, fronting([port]) as fronted:
        seen = sent_headers(fronted, {"X-Title": value.encode()})  # type: ignore[dict-item]
    assert seen["x-title"].encode("latin-1").decode() == value


@pytest.mark.parametrize(
    "url",
    [
        "http://a:99999",
        "http://a:0",
        "http://a\r\nb/",
        "http://a\x00",
        "http://[::1",
        "http://käse",
        "file:///x",
    ],
)
def test_an_address_that_is_none_is_refused_by_the_admin_path(url: str) -> None:
    """Not kept and tried for ever."""
    admin = KeyRing.of(True, ["operator"])
    with telling() as port, fronting([port], admin=admin) as fronted:
        body = json.dumps({"url": url}).encode()
        headers = {"X-API-Key": "operator"}
        answer = fronted.client.request("POST", "/gateway/upstreams", body, headers)
        assert answer.status == 422, answer
        assert len(fronted.gateway.fleet.upstreams) == 1


def test_slow_senders_do_not_hold_the_places_of_others() -> None:
    """A byte a second would keep a connection busy and a place taken for as long as the caller likes."""
    with serving() as worker, fronting([worker.client.port], max_concurrent=1) as fronted:
        with fronted.client.socket() as slow:
            head = b"POST /run HTTP/1.1\r\nHost: g\r\nContent-Length: 5000000\r\n\r\n"
            slow.sendall(head + b" " * 70_000)
            until(lambda: slow.send(b" ") == 1 and fronted.gateway.fleet.under_way == 1)
            answer = ask(fronted.client, 1)
            assert answer is not None
            assert answer.status == 200
            assert slow.recv(64).startswith(b"HTTP/1.1 408")
        assert fronted.gateway.fleet.balancer.standings[0].failures == 0


def test_slow_readers_do_not_hold_the_places_of_others() -> None:
    """The server is done with what they read."""
    picture = b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + b"A" * 10_000_000
    with telling(picture) as port, fronting([port], max_concurrent=1) as fronted:
        slow = [fronted.client.socket() for _ in range(3)]
        for caller in slow:
            caller.sendall(b"POST /run HTTP/1.1\r\nHost: g\r\nContent-Length: 2\r\n\r\n{}")
            assert caller.recv(64).startswith(b"HTTP/1.1 200")
        assert fronted.gateway.fleet.under_way == 3
        for caller in slow:
            caller.close()
        until(lambda: fronted.gateway.fleet.under_way == 0)


def test_requests_that_fail_take_nobody_elses_server_away() -> None:
    """One caller repeats what the only server cannot do; others can, and their jobs are still found."""
    with serving() as worker, fronting([worker.client.port]) as fronted:
        worker.painter.fault = ExecutionError("pipeline_error", "this picture cannot be made")
        assert [answer and answer.status for answer in (ask(fronted.client, n) for n in range(8))] == [
            500
        ] * 8
        assert fronted.client.get("/files/none.png").status == 404
        worker.painter.fault = None
        answer = ask(fronted.client, 9)
        assert answer is not None
        assert answer.status == 200


def test_lists_of_all_servers_are_asked_for_plain() -> None:
    """Two compressed answers cannot be made one, so all but the first server's would be missing."""
    with telling() as one, telling() as two, fronting([one, two]) as fronted:
        until(lambda: len(fronted.gateway.fleet.seen) == 2)
        seen = fronted.client.request("GET", "/jobs", None, {"Accept-Encoding": "gzip"}).json()
    assert "accept-encoding" not in {name.lower() for name, _ in seen["headers"]}


def test_no_body_is_taken_for_a_request() -> None:
    """The parser drops the body of a request that offers another protocol, and reads on behind its head."""
    with telling() as port, fronting([port]) as fronted, fronted.client.socket() as caller:
        inner = b"GET /live HTTP/1.1\r\nHost: g\r\n\r\n"
        offer = b"Connection: Upgrade\r\nUpgrade: another\r\n"
        head = b"POST /run HTTP/1.1\r\nHost: g\r\n" + offer + b"Content-Length: %d\r\n\r\n"
        caller.sendall(head % len(inner))
        got = caller.recv(4096)
        caller.settimeout(2)
        with suppress(ConnectionError):
            caller.sendall(inner)
            while chunk := caller.recv(4096):
                got += chunk
        assert got.startswith(b"HTTP/1.1 400")
        assert b"alive" not in got
        assert fronted.gateway.fleet.under_way == 0
