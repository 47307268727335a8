"""The ``runpod`` package, as it is published, against our server: only the base address is changed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import runpod

from tests.api.queueing import Queue, is_painted, queueing, wishes


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with queueing(tmp_path, concurrency=1) as running:
        yield running


@pytest.fixture
def endpoint(queue: Queue) -> Iterator[Any]:
    before = runpod.endpoint_url_base, runpod.api_key
    runpod.endpoint_url_base = f"http://127.0.0.1:{queue.served.client.port}/v2"
    runpod.api_key = "unused"
    found = runpod.Endpoint("my-endpoint")
    yield found
    found.rp_client.rp_session.close()
    runpod.endpoint_url_base, runpod.api_key = before


def test_run_sync(endpoint: Any) -> None:
    """It gives the output alone, and wraps what lacks ``input``."""
    assert is_painted(endpoint.run_sync({"input": wishes(3)}), 3)
    assert is_painted(endpoint.run_sync(wishes(4), timeout=20), 4)
    assert endpoint.run_sync({"promt": "x"}) is None, "a failed job has no output"


def test_run_status_and_output(endpoint: Any, queue: Queue) -> None:
    """The three calls of RunPod's own examples."""
    queue.painter.shut()
    job = endpoint.run({"input": wishes(5)})
    queue.begun()
    assert job.status() == "IN_PROGRESS"
    queue.painter.open()
    assert is_painted(job.output(timeout=20), 5)
    assert job.status() == "COMPLETED"


def test_cancel_and_purge(endpoint: Any, queue: Queue) -> None:
    """They send no body at all."""
    queue.painter.shut()
    running = endpoint.run(wishes())
    queue.begun()
    waiting = endpoint.run(wishes())
    assert endpoint.purge_queue() == {"removed": 1, "status": "completed"}
    assert waiting.status() == "CANCELLED"
    assert running.cancel() == {"id": running.job_id, "status": "CANCELLED"}
    assert running.status() == "CANCELLED"
    queue.painter.open()


def test_stream(endpoint: Any) -> None:
    """Its loop ends only once a read is empty."""
    *_, last = endpoint.run(wishes(6)).stream()
    assert is_painted(last, 6)


def test_health(endpoint: Any) -> None:
    """The names of RunPod's page."""
    health = endpoint.health()
    assert health["jobs"]["inQueue"] == 0
    assert health["workers"]["idle"] == 1
