"""RunPod's queue in front of our store: paths, states and answers as api.runpod.ai has them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.job_record import StoreLimits
from core.errors import ExecutionError
from core.result import Progress
from tests.api.queueing import Queue, is_painted, queueing, wishes
from tests.api.serving import INSIDE, serving


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queue]:
    """For tests that leave it as they found it."""
    with queueing(tmp_path_factory.mktemp("jobs")) as running:
        yield running


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with queueing(tmp_path, concurrency=1) as running:
        yield running


def test_a_job_is_queued_run_and_told_of(queue: Queue) -> None:
    """The whole way, with every field that RunPod's own answer has."""
    queue.painter.shut()
    id = queue.run(wishes(9))
    queue.begun()
    other = queue.run(wishes(10))
    assert queue.get(f"status/{other}") == {"id": other, "status": "IN_QUEUE"}
    running = queue.get(f"status/{id}")
    assert running.keys() == {"id", "status", "delayTime", "workerId"}
    assert running["status"] == "IN_PROGRESS"
    queue.painter.open()
    job = queue.ended(id)
    assert job.keys() == {"id", "status", "delayTime", "executionTime", "workerId", "output"}
    assert (job["id"], job["status"]) == (id, "COMPLETED")
    assert job["executionTime"] >= 0 <= job["delayTime"]
    assert is_painted(job["output"], 9)
    assert job["output"].keys() >= {"image", "prompt", "num_inference_steps", "lightning_enabled", "seed"}
    assert is_painted(queue.ended(other)["output"], 10)


def test_runsync_answers_with_the_job(shared: Queue) -> None:
    """And its id says which kind it was."""
    answer = shared.post("runsync", {"input": wishes(11)})
    assert answer.status == 200
    job = answer.json()
    assert job["id"].startswith("sync-")
    assert job["status"] == "COMPLETED"
    assert is_painted(job["output"], 11)


def test_runsync_that_waited_long_enough_leaves_the_job_in_the_queue(queue: Queue) -> None:
    """Its caller goes on to ask for the status, so it must be as durable as any."""
    queue.painter.shut()
    pending = queue.post("runsync?wait=1000", {"input": wishes(12)}).json()
    assert pending["status"] == "IN_PROGRESS"
    queue.painter.open()
    assert is_painted(queue.ended(pending["id"])["output"], 12)


def test_a_job_that_cannot_be_fails_and_says_why(shared: Queue) -> None:
    """``error`` is a plain string, as from a worker on RunPod; what ``input`` means is found out there."""
    job = shared.ended(shared.run({"promt": "x"}))
    assert job["status"] == "FAILED"
    assert isinstance(job["error"], str)
    assert "'prompt'" in job["error"]
    assert job["code"] == "unknown_field"
    assert "output" not in job


def test_an_s3_config_is_looked_into(shared: Queue) -> None:
    """As in the worker on RunPod: it is used for what is too large, and never ignored when it is wrong."""
    job = shared.ended(shared.run(wishes(), s3Config={"bucketName": "b"}))
    assert (job["status"], job["code"]) == ("FAILED", "invalid_parameter")
    assert "endpointUrl" in job["error"]


def test_a_prompt_may_be_missing_beside_a_picture(shared: Queue) -> None:
    """As in the worker on RunPod: the same job has the same answer at both."""
    asked = wishes()
    del asked["prompt"]
    assert shared.ended(shared.run(asked))["output"]["prompt"] == "Enhance the image"


def test_progress_shows_in_the_status(queue: Queue) -> None:
    """Callers poll it."""
    queue.painter.shut()
    id = queue.run()
    queue.begun()
    assert queue.painter.report is not None
    queue.painter.report(Progress(state="running", step=3, steps=8))
    assert queue.get(f"status/{id}")["output"] == {"state": "running", "step": 3, "steps": 8}
    queue.painter.open()
    assert "image" in queue.ended(id)["output"]


def test_a_stream_tells_what_is_new_and_ends(queue: Queue) -> None:
    """Each piece once. The JS client ends with the first COMPLETED, the Python one with the first empty."""
    queue.painter.shut()
    id = queue.run(wishes(13))
    queue.begun()
    for step in (1, 2):
        assert queue.painter.report is not None
        queue.painter.report(Progress(state="running", step=step, steps=4))
        told = queue.get(f"stream/{id}")
        assert told["status"] == "IN_PROGRESS"
        assert [piece["output"]["step"] for piece in told["stream"]] == [step]
    queue.painter.open()
    queue.ended(id)
    last = queue.get(f"stream/{id}")
    assert last["status"] == "COMPLETED"
    assert is_painted(last["stream"][-1]["output"], 13)
    assert queue.get(f"stream/{id}") == {"status": "COMPLETED", "stream": []}


def test_a_failed_job_streams_nothing(shared: Queue) -> None:
    """An array all the same: clients iterate over it."""
    id = shared.run({})
    shared.ended(id)
    assert shared.get(f"stream/{id}") == {"status": "FAILED", "stream": []}


def test_cancel_ends_what_waits_and_what_runs(queue: Queue) -> None:
    """The row leaves its batch; one that has ended stays as it is."""
    queue.painter.shut()
    running = queue.run()
    queue.begun()
    waiting = queue.run()
    for id in (waiting, running):
        assert queue.post(f"cancel/{id}").json() == {"id": id, "status": "CANCELLED"}
        assert queue.get(f"status/{id}")["status"] == "CANCELLED"
    assert queue.painter.cancelled.get(timeout=10).startswith(running)
    assert queue.painter.entered.empty(), "a cancelled job was begun"
    queue.painter.open()
    done = queue.run()
    queue.ended(done)
    assert queue.post(f"cancel/{done}", {}).json() == {"id": done, "status": "COMPLETED"}


def test_purge_ends_what_waits_alone(queue: Queue) -> None:
    """What runs is not in the queue any more."""
    queue.painter.shut()
    running = queue.run()
    queue.begun()
    waiting = [queue.run() for _ in range(3)]
    assert queue.post("purge-queue").json() == {"removed": 3, "status": "completed"}
    assert {queue.get(f"status/{id}")["status"] for id in waiting} == {"CANCELLED"}
    queue.painter.open()
    assert queue.ended(running)["status"] == "COMPLETED"


def test_what_failed_is_run_again_under_its_id(queue: Queue) -> None:
    """Its input was kept for that."""
    queue.painter.fault = ExecutionError("pipeline_error", "it broke")
    id = queue.run(wishes(14))
    failed = queue.ended(id)
    assert (failed["status"], failed["error"]) == ("FAILED", "it broke")
    queue.painter.fault = None
    assert queue.post(f"retry/{id}").json() == {"id": id, "status": "IN_QUEUE"}
    assert is_painted(queue.ended(id)["output"], 14)
    refused = queue.post(f"retry/{id}")
    assert (refused.status, refused.json()["code"]) == (409, "conflict")
    assert queue.get("health")["jobs"]["retried"] == 1


def test_health_counts_jobs_and_workers(queue: Queue) -> None:
    """Autoscalers and dashboards read these names."""
    workers = {"idle", "initializing", "ready", "running", "throttled", "unhealthy"}
    queue.painter.shut()
    queue.run()
    queue.begun()
    queue.run()
    health = queue.get("health")
    assert health["jobs"] == {"completed": 0, "failed": 0, "inProgress": 1, "inQueue": 1, "retried": 0}
    assert health["workers"].keys() == workers
    assert (health["workers"]["running"], health["workers"]["idle"]) == (1, 0)
    for state, word in [("loading", "initializing"), ("failed", "unhealthy"), ("draining", "throttled")]:
        queue.served.probe.say(state)
        found = queue.get("health")["workers"]
        assert [name for name, number in found.items() if number] == [word]
    queue.painter.open()


@pytest.mark.parametrize(
    ("policy", "words"), [({"executionTimeout": 100}, "not done within"), ({"ttl": 300}, "within its time")]
)
def test_a_policy_ends_what_takes_too_long(queue: Queue, policy: dict[str, int], words: str) -> None:
    """Milliseconds, as on RunPod; and what timed out may be retried."""
    queue.painter.shut()
    job = queue.ended(queue.run(wishes(), policy=policy | {"lowPriority": True}))
    assert job["status"] == "TIMED_OUT"
    assert words in job["error"]
    queue.painter.open()
    assert queue.post(f"retry/{job['id']}").json()["status"] == "IN_QUEUE"


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({}, "invalid_parameter", "input"),
    ({"input": "x"}, "invalid_parameter", "input"),
    ({"input": {}, "webhok": "https://a.example"}, "unknown_field", "webhook"),
    ({"input": {}, "webhook": "ftp://a.example"}, "invalid_parameter", "webhook"),
    ({"input": {}, "webhook": "http://["}, "invalid_parameter", "webhook"),
    ({"input": {}, "webhook": 3}, "invalid_parameter", "webhook"),
    ({"input": {}, "policy": []}, "invalid_parameter", "policy"),
    ({"input": {}, "policy": {"ttl": "1"}}, "invalid_parameter", "policy.ttl"),
    ({"input": {}, "policy": {"ttl": True}}, "invalid_parameter", "policy.ttl"),
    ({"input": {}, "policy": {"executionTimeout": 0}}, "invalid_parameter", "policy.executionTimeout"),
    ({"input": {}, "policy": {"executionTimeout": 7 * 86_400_001}}, "invalid_parameter", "604800000"),
    ({"input": {}, "policy": {"lowPriority": 1}}, "invalid_parameter", "lowPriority"),
    ({"input": {}, "policy": {"TTL": 1}}, "unknown_field", "ttl"),
]


@pytest.mark.parametrize("path", ["run", "runsync"])
@pytest.mark.parametrize(("body", "code", "words"), REFUSED)
def test_what_stands_beside_input_is_checked_at_once(
    shared: Queue, path: str, body: dict[str, Any], code: str, words: str
) -> None:
    """A misspelt webhook would never be called, and nobody would know."""
    answer = shared.post(path, body)
    assert (answer.status, answer.json()["code"]) == (422, code)
    assert words in answer.json()["error"]


@pytest.mark.parametrize("wait", ["999", "300001", "x", "-1", "1e4", ""])
def test_a_wait_out_of_range_is_refused(shared: Queue, wait: str) -> None:
    """Before a job is made of it."""
    answer = shared.post(f"runsync?wait={wait}", {"input": wishes()})
    assert (answer.status, answer.json()["param"]) == (422, "wait")
    assert shared.served.client.get(f"{shared.base}/status-sync/x?wait={wait}").status == 422


@pytest.mark.parametrize(
    ("path", "limit"), [("run", 10 * 2**20), ("runsync", 20 * 2**20), ("cancel/x", 2**16)]
)
def test_a_body_over_the_cap_is_refused_unread(shared: Queue, path: str, limit: int) -> None:
    """RunPod's own caps, so that what works here works there."""
    answer = shared.served.client.request(
        "POST", f"{shared.base}/{path}", b"", {"Content-Length": str(limit + 1)}
    )
    assert (answer.status, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "status"), ("GET", "status-sync"), ("GET", "stream"), ("POST", "cancel"), ("POST", "retry")],
)
def test_a_job_that_is_not_there(shared: Queue, method: str, path: str) -> None:
    """404 in our own words, with an id for the log."""
    answer = shared.served.client.request(method, f"{shared.base}/{path}/nothing")
    assert (answer.status, answer.json()["code"]) == (404, "job_not_found")
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


def test_an_idempotency_key_makes_one_job(shared: Queue) -> None:
    """A client that sends again after a lost answer must not pay twice."""
    key = {"Idempotency-Key": "order-1"}
    body = {"input": wishes(15)}
    first, second = (shared.post("run", body, key).json()["id"] for _ in range(2))
    assert first == second
    assert shared.post("runsync", body, key).json()["id"] == first
    other = shared.post("run", {"input": wishes(16)}, key)
    assert (other.status, other.json()["code"]) == (409, "conflict")
    assert shared.post("run", body, {"Idempotency-Key": "k" * 256}).status == 422


def test_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    """429, which RunPod's client tries again."""
    with queueing(tmp_path, limits=StoreLimits(max_live=1, min_free_bytes=0)) as queue:
        queue.painter.shut()
        queue.run()
        answer = queue.post("run", {"input": wishes()})
        assert (answer.status, answer.json()["code"]) == (429, "queue_full")
        assert 1 <= int(answer.headers["retry-after"]) <= 120


def test_a_folder_that_cannot_be_used_leaves_the_rest_working(tmp_path: Path) -> None:
    """Synchronous callers need no disk."""
    (tmp_path / "file").write_text("no folder")
    with queueing(tmp_path / "file") as queue:
        assert queue.served.client.run(wishes()).status == 200
        for answer in (queue.post("run", {"input": wishes()}), queue.served.client.get("/jobs")):
            assert (answer.status, answer.json()["code"]) == (507, "storage_full")
            assert answer.headers["x-should-retry"] == "false"
            assert not INSIDE.search(answer.body)


def test_without_a_store_the_routes_refuse() -> None:
    """An application that was made without one."""
    with serving() as served:
        assert served.client.get("/v2/x/health").status == 507


def test_who_leaves_ends_nothing(queue: Queue) -> None:
    """A job that was acknowledged in the store is its own affair."""
    queue.painter.shut()
    body = json.dumps({"input": wishes(17)}).encode()
    with queue.served.client.socket() as connection:
        head = f"POST {queue.base}/runsync HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        request = queue.begun()
    queue.painter.open()
    assert is_painted(queue.ended(request.id.split("/")[0])["output"], 17)
