"""Jobs, files and lists through one port, although each worker knows its own alone."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.api.queueing import Queue, queueing, wishes
from tests.api.serving import Served
from tests.gateway.fronting import FaultProxy, Fronted, fronting, until


@pytest.fixture
def queues(tmp_path: Path) -> Iterator[tuple[Fronted, list[Queue], Queue]]:
    """Two workers with stores, and the gateway as one queue."""
    with ExitStack() as stack:
        workers = [stack.enter_context(queueing(tmp_path / name)) for name in ("a", "b")]
        fronted = stack.enter_context(fronting([worker.served.client.port for worker in workers]))
        until(lambda: len(fronted.gateway.fleet.seen) == 2)
        through = Queue(Served(fronted.client, workers[0].painter, workers[0].served.probe, int))
        yield fronted, workers, through


def forget(fronted: Fronted) -> None:
    """As another process of the gateway, or this one after a restart: it has seen none of the jobs."""
    fronted.gateway.fleet.holders_known.clear()


def test_a_job_is_found_where_it_is(queues: tuple[Fronted, list[Queue], Queue]) -> None:
    """By a process that has never heard of it, too."""
    fronted, workers, through = queues
    ids = [through.run(wishes(seed)) for seed in range(6)]
    for known in (True, False):
        if not known:
            forget(fronted)
        for id in ids:
            assert through.ended(id)["status"] == "COMPLETED"
    listed = fronted.client.get("/jobs").json()
    assert {job["id"] for job in listed["jobs"]} == set(ids)
    assert through.get("health")["jobs"]["completed"] == 6
    held = [len(worker.served.client.get("/jobs").json()["jobs"]) for worker in workers]
    assert sorted(held) == [3, 3]


def test_pages_of_all_jobs_name_each_once(queues: tuple[Fronted, list[Queue], Queue]) -> None:
    """``after`` of the page before leads on at every worker."""
    fronted, _, through = queues
    ids = [through.run(wishes(seed)) for seed in range(7)]
    seen: list[str] = []
    page = fronted.client.get("/jobs?limit=2").json()
    while True:
        seen += [job["id"] for job in page["jobs"]]
        if page["after"] is None:
            break
        page = fronted.client.get(f"/jobs?limit=2&after={quote(page['after'], safe='')}").json()
    assert sorted(seen) == sorted(ids)


def test_a_job_of_nobody_is_not_found(queues: tuple[Fronted, list[Queue], Queue]) -> None:
    """404 only when every worker was heard; while one cannot be asked, nobody knows."""
    fronted, _, _ = queues
    assert fronted.client.get("/v2/x/status/no-such-job").status == 404
    balancer = fronted.gateway.fleet.balancer
    for standing in balancer.standings[:1]:
        standing.ejected_until = float("inf")
    answer = fronted.client.get("/v2/x/status/no-such-job")
    assert (answer.status, answer.json()["code"]) == (503, "no_upstream")


def test_a_cancel_reaches_the_worker_that_runs_it(queues: tuple[Fronted, list[Queue], Queue]) -> None:
    """And only that one."""
    fronted, workers, through = queues
    for worker in workers:
        worker.painter.shut()
    id = through.run(wishes(1))
    forget(fronted)
    assert through.post(f"cancel/{id}", {}).json()["status"] == "CANCELLED"
    for worker in workers:
        worker.painter.open()


def test_models_of_all_workers_are_listed_once(queues: tuple[Fronted, list[Queue], Queue]) -> None:
    """Clients show the list to people."""
    fronted, workers, _ = queues
    one = workers[0].served.client.get("/v1/models").json()
    both = fronted.client.get("/v1/models").json()
    assert [row["id"] for row in both["data"]] == [row["id"] for row in one["data"]]
    assert both["models"] == one["models"]


def test_files_are_found_at_the_worker_that_kept_them(queues: tuple[Fronted, list[Queue], Queue]) -> None:
    """Their addresses name the gateway, by the host that the caller used."""
    fronted, _, _ = queues
    body = json.dumps({"prompt": "x", "model": "artist", "size": "64x64", "response_format": "url"}).encode()
    for _ in range(2):
        made = fronted.client.request(
            "POST", "/v1/images/generations", body, {"Content-Type": "application/json"}
        )
        url = made.json()["data"][0]["url"]
        assert url.startswith(f"http://127.0.0.1:{fronted.client.port}/files/")
        picture = fronted.client.get(url.partition(str(fronted.client.port))[2])
        assert picture.status == 200
        assert picture.body[1:4] == b"PNG"


def test_the_same_key_is_the_same_job(queues: tuple[Fronted, list[Queue], Queue]) -> None:
    """Whichever process of the gateway takes the second try: it must reach the worker that keeps the key."""
    fronted, workers, through = queues
    for number in range(4):
        key = {"Idempotency-Key": f"key-{number}"}
        answers = [through.post("run", {"input": wishes(number)}, key) for _ in range(3)]
        assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(fronted.client.get("/jobs").json()["jobs"]) == 4
    ports = [worker.served.client.port for worker in workers]
    with fronting(ports[::-1]) as other:
        until(lambda: len(other.gateway.fleet.seen) == 2)
        again = Queue(Served(other.client, workers[0].painter, workers[0].served.probe, int))
        again.post("run", {"input": wishes(0)}, {"Idempotency-Key": "key-0"})
        assert len(other.client.get("/jobs").json()["jobs"]) == 4


@pytest.mark.parametrize("key", [{"Idempotency-Key": "mine"}, {}])
def test_a_job_that_was_given_away_is_asked_again_only_by_its_key(
    tmp_path: Path, key: dict[str, str]
) -> None:
    """The answer was lost on its way; the worker knows the key and names the same job."""
    with (
        queueing(tmp_path) as queue,
        closing(FaultProxy(queue.served.client.port)) as proxy,
        fronting([proxy.port]) as fronted,
    ):
        until(lambda: bool(fronted.gateway.fleet.seen))
        proxy.fault, proxy.once = "reset_after", True
        through = Queue(Served(fronted.client, queue.painter, queue.served.probe, int))
        answer = through.post("run", {"input": wishes()}, key)
        assert answer.status == (200 if key else 502)
        assert proxy.hits == {"reset_after": 1}
        assert len(queue.served.client.get("/jobs").json()["jobs"]) == 1
