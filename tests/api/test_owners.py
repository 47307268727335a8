"""Two callers with keys of their own on one server: neither learns of the other's jobs, nor ends them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.gate import AccessOptions
from api.keys import KeyRing
from tests.api.queueing import ENDED, Queue, queueing, wishes
from tests.api.serving import Answer

ANN, BOB = {"X-API-Key": "ann's key"}, {"Authorization": "Bearer bob's key"}


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    keys = AccessOptions(keys=KeyRing.of(True, ["ann's key", "bob's key"]))
    with queueing(tmp_path, concurrency=1, access=keys) as running:
        yield running


def ask(queue: Queue, who: dict[str, str], path: str, method: str = "GET", body: object = None) -> Answer:
    data = None if method == "GET" else b"" if body is None else json.dumps(body).encode()
    return queue.served.client.request(method, path, data, {"Content-Type": "application/json"} | who)


def run(queue: Queue, who: dict[str, str], **beside: object) -> str:
    answer = queue.post("run", {"input": wishes()} | beside, who)
    assert answer.status == 200, answer.body
    return str(answer.json()["id"])


# Every path that takes the id of a job, and how it is asked.
BY_ID = (
    ("GET", "/v2/any/status/{id}"),
    ("GET", "/v2/any/status-sync/{id}?wait=1000"),
    ("GET", "/v2/any/stream/{id}"),
    ("POST", "/v2/any/cancel/{id}"),
    ("POST", "/v2/any/retry/{id}"),
    ("GET", "/jobs/{id}"),
    ("DELETE", "/jobs/{id}"),
)


@pytest.mark.parametrize(("method", "path"), BY_ID, ids=lambda part: str(part))
def test_anothers_job_is_as_if_it_were_not_there(queue: Queue, method: str, path: str) -> None:
    """Waiting or running, by every path: the very answer that a made-up id gets."""
    queue.painter.shut()
    ids = [run(queue, ANN), run(queue, ANN)]
    queue.begun()
    for id in ids:
        told = ask(queue, BOB, path.format(id=id), method)
        made_up = id[:-1] + ("0" if id[-1] != "0" else "1")
        unknown = ask(queue, BOB, path.format(id=made_up), method)
        assert (told.status, unknown.status) == (404, 404)
        assert told.json() | {"request_id": ""} == unknown.json() | {"request_id": ""}
    queue.painter.open()
    for id in ids:
        job = ask(queue, ANN, f"/v2/any/status-sync/{id}?wait=20000").json()
        assert job["status"] == "COMPLETED"


def test_every_path_with_an_id_is_in_the_table_above(queue: Queue) -> None:
    """Or a route added later would not be tested."""
    documented = ask(queue, ANN, "/openapi.json").json()["paths"]
    about_jobs = {
        (method.upper(), path.replace("{endpoint_id}", "any"))
        for path, methods in documented.items()
        for method in methods
        if "{id}" in path and not path.startswith(("/v1/", "/openai/"))
    }
    assert about_jobs <= {(method, path.partition("?")[0]) for method, path in BY_ID}
    assert about_jobs


def test_lists_and_purges_are_of_ones_own(queue: Queue) -> None:
    """Nothing of the other's is counted, shown or emptied."""
    queue.painter.shut()
    running, waiting = run(queue, ANN), run(queue, ANN)
    queue.begun()
    theirs = run(queue, BOB)
    listed = {job["id"] for job in ask(queue, BOB, "/jobs").json()["jobs"]}
    assert listed == {theirs}
    assert ask(queue, BOB, "/v2/any/purge-queue", "POST").json()["removed"] == 1
    queue.painter.open()
    for id in (running, waiting):
        assert ask(queue, ANN, f"/v2/any/status-sync/{id}?wait=20000").json()["status"] == "COMPLETED"
    assert ask(queue, BOB, f"/v2/any/status/{theirs}").json()["status"] in ENDED - {"COMPLETED"}


def test_one_idempotency_key_of_two_callers_is_two_jobs(queue: Queue) -> None:
    """The word "1" is nobody's property, and the second caller must not be given the first one's picture."""
    word = {"Idempotency-Key": "1"}
    first, second = run(queue, ANN | word), run(queue, BOB | word)
    assert first != second
    assert run(queue, ANN | word) == first


def test_one_callers_flood_does_not_hold_up_anothers_job(queue: Queue) -> None:
    """Callers take turns: the lone job runs second, not twenty-first."""
    queue.painter.shut()
    flood = [run(queue, ANN) for _ in range(20)]
    queue.begun()
    lone = run(queue, BOB)
    queue.painter.open()
    assert ask(queue, BOB, f"/v2/any/status-sync/{lone}?wait=20000").json()["status"] == "COMPLETED"
    done = [ask(queue, ANN, f"/jobs/{id}").json() for id in flood]
    end = ask(queue, BOB, f"/jobs/{lone}").json()["finished_at"]
    before = [job for job in done if job["finished_at"] is not None and job["finished_at"] < end]
    assert len(before) <= 3
