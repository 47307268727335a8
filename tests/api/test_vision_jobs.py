"""Vision requests as jobs: submitted, asked for, deleted, told of by webhook, and there after a restart."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from api.app import AccessOptions, ApiOptions
from api.fetch import GuardedFetch
from api.job_record import StoreLimits
from api.keys import KeyRing
from core.catalog import Catalog
from core.errors import ExecutionError
from tests.api.findings import SEERS
from tests.api.queueing import Queue, queueing
from tests.api.remote import remote_server
from tests.api.serving import PAINTER, Answer
from tests.api.test_hostile import SECRET, check_refusal
from tests.api.test_queue_webhooks import receiver
from tests.api.test_vision_masks import read_lists, read_rle
from tests.api.test_vision_service import PICTURE

ROWS = Catalog([*SEERS, PAINTER], default="cutter")
VISION = ApiOptions(profile="vision")
SEGMENT = {"images": [PICTURE], "prompts": ["person"]}


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with queueing(tmp_path, concurrency=1, catalog=ROWS, api=VISION) as running:
        yield running


def ask(queue: Queue, method: str, path: str, body: object = None, **headers: str) -> Answer:
    data = b"" if body is None else json.dumps(body).encode()
    return queue.served.client.request(method, path, data, {"Content-Type": "application/json"} | headers)


def submit(queue: Queue, kind: str = "sam3", body: object = None, **headers: str) -> Any:
    answer = ask(queue, "POST", f"/jobs/submit/{kind}", SEGMENT if body is None else body, **headers)
    assert answer.status == 200, answer.body
    return answer.json()


def ended(queue: Queue, id: str) -> Any:
    answer = ask(queue, "GET", f"/jobs/{id}?wait=15000")
    assert answer.status == 200, answer.body
    assert answer.json()["status"] in ("completed", "failed"), answer.body
    return answer.json()


def test_a_job_from_its_submission_to_its_end(queue: Queue) -> None:
    """In the four states of its first clients; masks are dense where a job names no format."""
    queue.painter.shut()
    job = submit(queue)
    assert job.keys() == {"job_id", "status", "created_at", "completed_at", "result", "error"}
    assert (job["completed_at"], job["result"], job["error"]) == (None, None, None)
    queue.begun()
    waiting = submit(queue)
    assert ask(queue, "GET", f"/jobs/{job['job_id']}").json()["status"] == "running"
    assert ask(queue, "GET", f"/jobs/{waiting['job_id']}").json()["status"] == "pending"
    queue.painter.open()
    done = ended(queue, job["job_id"])
    assert done["status"] == "completed"
    assert datetime.fromisoformat(done["created_at"]) <= datetime.fromisoformat(done["completed_at"])
    found = done["result"]["results"][0][0]["result"]
    assert read_lists(found["masks"][0]).sum() == 40 * 60
    listed = ask(queue, "GET", "/jobs").json()
    assert listed[job["job_id"]]["status"] == "completed"
    assert all(one["result"] is None for one in listed.values())


@pytest.mark.parametrize(
    ("kind", "body", "key"),
    [
        ("grounding_dino", {"prompts": ["a"]}, "results"),
        ("depth_anything", {}, "depth_data"),
        ("dinov3", {}, "features"),
        ("sam3", {"prompts": ["a"], "output_format": "rle"}, "results"),
    ],
)
def test_every_kind_can_be_queued(queue: Queue, kind: str, body: dict[str, Any], key: str) -> None:
    """And answers what its route does."""
    done = ended(queue, submit(queue, kind, {"images": [PICTURE]} | body)["job_id"])
    assert done["status"] == "completed", done["error"]
    assert key in done["result"]
    if body.get("output_format") == "rle":
        assert read_rle(done["result"]["results"][0][0]["result"]["masks_rle"][0]).sum() == 40 * 60


def test_a_job_that_waits_is_deleted_and_never_runs(queue: Queue) -> None:
    """One that runs ends too, and one that is over is forgotten; each is then not found."""
    queue.painter.shut()
    runs, waits = submit(queue)["job_id"], submit(queue)["job_id"]
    queue.begun()
    for id in (waits, runs):
        answer = ask(queue, "DELETE", f"/jobs/{id}")
        assert (answer.status, answer.json()) == (200, {"message": f"Job {id} deleted"})
        missing = ask(queue, "GET", f"/jobs/{id}")
        assert (missing.status, missing.json()["detail"]) == (404, f"Job {id} not found")
    assert queue.painter.cancelled.get(timeout=10)
    queue.painter.open()
    over = submit(queue)["job_id"]
    ended(queue, over)
    assert ask(queue, "DELETE", f"/jobs/{over}").status == 200
    assert ask(queue, "DELETE", f"/jobs/{over}").status == 404
    assert ask(queue, "GET", "/jobs").json() == {}
    queue.begun()
    assert queue.painter.entered.empty(), "the job that waited ran all the same"


def test_a_failure_says_why(queue: Queue) -> None:
    """In the words of the error."""
    queue.painter.fault = ExecutionError("pipeline_error", "numbers that are none")
    done = ended(queue, submit(queue)["job_id"])
    assert (done["status"], done["error"], done["result"]) == ("failed", "numbers that are none", None)


def test_a_restart_loses_none(tmp_path: Path) -> None:
    """What ran and what waited goes on in the next process; what was done is still there."""
    with queueing(tmp_path, concurrency=1, catalog=ROWS, api=VISION) as first:
        done = submit(first)["job_id"]
        ended(first, done)
        first.painter.shut()
        ids = [submit(first, "dinov3", {"images": [PICTURE]})["job_id"] for _ in range(3)]
        first.begun()
    with queueing(tmp_path, concurrency=1, catalog=ROWS, api=VISION) as second:
        assert ended(second, done)["result"]["results"]
        for id in ids:
            assert ended(second, id)["result"]["features"]["pooler_output_shape"] == [1, 8]


def test_results_expire(tmp_path: Path) -> None:
    """They are as long as pictures; what was kept long enough is not found any more."""
    with queueing(tmp_path, catalog=ROWS, api=VISION) as first:
        id = submit(first)["job_id"]
        ended(first, id)
    limits = StoreLimits(min_free_bytes=0, keep_bytes=1)
    with queueing(tmp_path, catalog=ROWS, api=VISION, limits=limits) as second:
        pause, looks = Event(), 0
        while ask(second, "GET", f"/jobs/{id}").status == 200:
            assert (looks := looks + 1) < 200
            pause.wait(0.05)
        assert ask(second, "GET", f"/jobs/{id}").json()["detail"] == f"Job {id} not found"


def test_the_same_key_names_the_same_job(queue: Queue) -> None:
    """A client that did not hear the answer may ask again."""
    headers = {"Idempotency-Key": "mine"}
    assert submit(queue, **headers)["job_id"] == submit(queue, **headers)["job_id"]
    other = ask(queue, "POST", "/jobs/submit/dinov3", {"images": [PICTURE]}, **headers)
    assert other.status == 409


def test_a_webhook_is_told_what_the_job_shows(tmp_path: Path) -> None:
    """Result and all; the field is beside those of the route."""
    with remote_server() as remote:
        taken = receiver(remote)
        post = GuardedFetch(max_bytes=2**20, timeout=5, allow_hosts={remote.pair}).post
        with queueing(tmp_path, catalog=ROWS, api=VISION, post=post) as queue:
            body = SEGMENT | {"webhook": remote.url("/done"), "output_format": "rle"}
            id = submit(queue, body=body)["job_id"]
            assert json.loads(taken.get(timeout=10)) == ended(queue, id)


@pytest.mark.parametrize(
    ("kind", "body", "status", "sentence"),
    [
        ("sam4", SEGMENT, 400, "Invalid model type: sam4"),
        ("grounding-dino", SEGMENT, 400, "Invalid model type: grounding-dino"),
        ("sam3", {"images": [PICTURE]}, 422, "there is no prompt"),
        ("sam3", {"images": [PICTURE], "prompts": ["a"] * 300}, 422, "over the limit of 64"),
        ("sam3", SEGMENT | {"webhook": "ftp://x"}, 422, "webhook must be an http or https URL"),
        ("sam3", SEGMENT | {SECRET: 1}, 422, "a field is unknown"),
        ("sam3", [], 422, ""),
        ("dinov3", {"images": [PICTURE] * 40}, 422, "40 images are over the limit of 32"),
    ],
    ids=["kind", "slug", "no prompts", "300 prompts", "webhook", "field", "list", "pictures"],
)
def test_what_can_be_judged_is_refused_at_once(
    queue: Queue, kind: str, body: object, status: int, sentence: str
) -> None:
    """Rather than hours later."""
    answer = ask(queue, "POST", f"/jobs/submit/{kind}", body)
    assert answer.status == status, answer.body
    assert sentence in answer.json()["error"]
    check_refusal(answer)
    assert ask(queue, "GET", "/jobs").json() == {}


def test_a_hostile_name_is_not_repeated(queue: Queue) -> None:
    """Whoever shows an error may show it as HTML."""
    for path in ("/jobs/submit/%3Cscript%3E", "/jobs/%3Cscript%3E"):
        answer = ask(queue, "POST" if "submit" in path else "GET", path, SEGMENT)
        assert answer.status in (400, 404)
        assert b"script" not in answer.body


def test_nobody_elses_job_is_shown_and_none_of_another_kind(tmp_path: Path) -> None:
    """What is not there, another's and another dialect's look the same."""
    keys = AccessOptions(keys=KeyRing.of(True, ["one-key", "two-key"]))
    with queueing(tmp_path, catalog=ROWS, api=VISION, access=keys) as queue:
        mine = submit(queue, **{"X-API-Key": "one-key"})["job_id"]
        assert ask(queue, "GET", f"/jobs/{mine}", **{"X-API-Key": "two-key"}).status == 404
        assert ask(queue, "DELETE", f"/jobs/{mine}", **{"X-API-Key": "two-key"}).status == 404
        assert ask(queue, "GET", "/jobs", **{"X-API-Key": "two-key"}).json() == {}
        runpod = queue.post("run", {"input": {}}, {"X-API-Key": "one-key"}).json()["id"]
        assert ask(queue, "GET", f"/jobs/{runpod}", **{"X-API-Key": "one-key"}).status == 404


def test_another_profile_shows_them_as_all_others(tmp_path: Path) -> None:
    """By the id under which they were submitted."""
    with queueing(tmp_path, catalog=ROWS) as queue:
        id = submit(queue)["job_id"]
        shown = ask(queue, "GET", f"/jobs/{id}").json()
        assert (shown["id"], shown["dialect"]) == (id, "vision")
