"""Servers come and go while the gateway runs, by the operator's word alone."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.keys import KeyRing
from tests.api.serving import Served, serving
from tests.gateway.fronting import Fronted, ask, executed, fronting, load, two_workers, until

ADMIN = {"X-API-Key": "operator", "Content-Type": "application/json"}


@pytest.fixture
def changing(tmp_path: Path) -> Iterator[tuple[Fronted, Served, Served, Path]]:
    """A gateway that knows the first of two workers."""
    kept = tmp_path / "data/gateway.json"
    with (
        two_workers() as (first, second),
        fronting([first.client.port], admin=KeyRing.of(True, ["operator"]), kept=kept) as fronted,
    ):
        yield fronted, first, second, kept


def tell(fronted: Fronted, method: str, path: str, worker: Served) -> int:
    body = json.dumps({"url": f"http://127.0.0.1:{worker.client.port}"}).encode()
    return fronted.client.request(method, f"/gateway/upstreams{path}", body, ADMIN).status


def test_add_drain_and_remove(changing: tuple[Fronted, Served, Served, Path]) -> None:
    """Each change holds from the next request on, and no request is lost by it."""
    fronted, first, second, _ = changing
    assert tell(fronted, "POST", "", second) == 200
    assert load(fronted.client, range(20)).good == 20
    assert executed(first)
    assert executed(second)
    assert tell(fronted, "POST", "/drain", first) == 200
    assert load(fronted.client, range(20)).good == 20
    assert not executed(first)
    assert len(executed(second)) == 20
    assert tell(fronted, "POST", "", first) == 200
    assert tell(fronted, "DELETE", "", second) == 200
    assert load(fronted.client, range(20)).good == 20
    assert not executed(second)
    listed = fronted.client.request("GET", "/gateway/upstreams", None, ADMIN).json()["upstreams"]
    assert [each["url"] for each in listed] == [f"http://127.0.0.1:{first.client.port}"]
    assert tell(fronted, "DELETE", "", first) == 409


@pytest.mark.parametrize("way", [("POST", "/drain"), ("DELETE", "")])
def test_what_was_drained_or_removed_finishes(
    changing: tuple[Fronted, Served, Served, Path], way: tuple[str, str]
) -> None:
    """Neither cuts anything off."""
    fronted, first, second, _ = changing
    first.painter.shut()
    tell(fronted, "POST", "", second)
    begun = [fronted.client.socket() for _ in range(2)]
    body = json.dumps({"input": {"prompt": "x", "model": "artist"}}).encode()
    for caller in begun:
        caller.sendall(b"POST /run HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    until(lambda: first.painter.entered.qsize() == 2)  # the second follows the model
    assert tell(fronted, *way, first) == 200
    first.painter.open()
    for caller in begun:
        assert caller.recv(64).startswith(b"HTTP/1.1 200")
        caller.close()
    if way[0] == "DELETE":
        until(lambda: len(fronted.gateway.fleet.upstreams) == 1)


def test_another_process_and_the_next_start_learn_of_it(
    changing: tuple[Fronted, Served, Served, Path],
) -> None:
    """gunicorn's other processes were not asked, and a restart must not undo a drain; a new setting does."""
    fronted, first, second, kept = changing
    admin = KeyRing.of(True, ["operator"])
    with fronting([first.client.port], admin=admin, kept=kept) as other:
        tell(fronted, "POST", "", second)
        tell(fronted, "POST", "/drain", first)
        until(lambda: len(other.gateway.fleet.upstreams) == 2)
        until(lambda: any(each.draining for each in other.gateway.fleet.balancer.standings))
    with fronting([second.client.port], admin=admin, kept=kept) as elsewhere:
        until(lambda: bool(elsewhere.gateway.fleet.seen))
        names = [each.url for each in elsewhere.gateway.fleet.upstreams.values()]
        assert names == [f"http://127.0.0.1:{second.client.port}"]


def test_nobody_else_may(changing: tuple[Fronted, Served, Served, Path]) -> None:
    """A caller's key is no operator's; without an operator's key the path is as any other."""
    fronted, first, _, _ = changing
    assert fronted.client.get("/gateway/upstreams").status == 401
    wrong = fronted.client.request("GET", "/gateway/upstreams", None, {"X-API-Key": "caller"})
    assert wrong.status == 401
    with fronting([first.client.port]) as closed:
        assert closed.client.request("GET", "/gateway/upstreams", None, ADMIN).status == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"url":5}',
        b'{"url":"ftp://x"}',
        b'{"url":"http://k@x"}',
        b'{"url":"http://x/?k"}',
    ],
)
def test_nonsense_is_refused(changing: tuple[Fronted, Served, Served, Path], body: bytes) -> None:
    """Never a 500, and nothing changes."""
    fronted, _, _, _ = changing
    answer = fronted.client.request("POST", "/gateway/upstreams", body, ADMIN)
    assert answer.status in (400, 422)
    assert len(fronted.gateway.fleet.upstreams) == 1


def test_an_added_server_answers() -> None:
    """A control: without it the request has nowhere to go."""
    with serving() as worker, fronting([1], admin=KeyRing.of(True, ["operator"])) as fronted:
        until(lambda: bool(fronted.gateway.fleet.seen))
        before = ask(fronted.client, 1)
        assert before is not None
        assert before.status == 503
        assert tell(fronted, "POST", "", worker) == 200
        after = ask(fronted.client, 2)
        assert after is not None
        assert after.status == 200
