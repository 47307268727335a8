"""``/jobs``: what a caller has queued, whichever dialect it spoke."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.api.queueing import Queue, is_painted, queueing, wishes


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with queueing(tmp_path, concurrency=1) as running:
        yield running


def jobs(queue: Queue, query: str = "") -> Any:
    answer = queue.served.client.get(f"/jobs{query}")
    assert answer.status == 200, answer.body
    return answer.json()


def test_pages_go_from_the_newest_to_the_oldest(queue: Queue) -> None:
    """Without the results: a page of pictures would be a hundred megabytes."""
    ids = [queue.run(wishes(seed)) for seed in range(5)]
    for id in ids:
        queue.ended(id)
    seen: list[str] = []
    after = ""
    for size in (2, 2, 1):
        page = jobs(queue, f"?limit=2{after}")
        assert len(page["jobs"]) == size
        seen += [job["id"] for job in page["jobs"]]
        after = f"&after={page['after']}"
    assert page["after"] is None
    assert seen == ids[::-1]
    assert all("result" not in job for job in page["jobs"])


def test_a_job_is_told_in_full(queue: Queue) -> None:
    """Times are those that any language reads."""
    id = queue.run(wishes(21))
    queue.ended(id)
    job = jobs(queue, f"/{id}")
    assert (job["id"], job["state"], job["dialect"], job["attempts"]) == (id, "succeeded", "runpod", 1)
    times = [
        datetime.fromisoformat(job[f"{name}_at"]) for name in ("created", "started", "finished", "expires")
    ]
    assert times == sorted(times)
    assert job["error"] is None
    assert is_painted(job["result"], 21)


def test_delete_ends_a_job(queue: Queue) -> None:
    """And its result is none."""
    queue.painter.shut()
    id = queue.run()
    queue.begun()
    answer = queue.served.client.request("DELETE", f"/jobs/{id}")
    assert (answer.status, answer.json()["state"]) == (200, "cancelled")
    assert jobs(queue, f"/{id}")["result"] is None
    queue.painter.open()


def test_states_choose(queue: Queue) -> None:
    """Which is how a client finds what went wrong."""
    failed, done = queue.run({}), queue.run(wishes())
    queue.ended(failed)
    queue.ended(done)
    (found,) = jobs(queue, "?state=failed,expired")["jobs"]
    assert found["id"] == failed
    assert found["error"]["code"] == "invalid_parameter"
    assert [job["id"] for job in jobs(queue, "?state=succeeded")["jobs"]] == [done]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=x", "limit"),
        ("state=done", "state"),
        ("after=x", "after"),
    ],
)
def test_a_bad_question_is_refused(queue: Queue, query: str, param: str) -> None:
    """By name."""
    answer = queue.served.client.get(f"/jobs?{query}")
    assert (answer.status, answer.json()["param"]) == (422, param)


def test_nobody_elses(queue: Queue) -> None:
    """What is not there and what is another's look the same."""
    for method in ("GET", "DELETE"):
        answer = queue.served.client.request(method, "/jobs/nothing")
        assert (answer.status, answer.json()["code"]) == (404, "job_not_found")
