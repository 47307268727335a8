"""RunPod's queue in front of our store: paths, states and answers as api.runpod.ai has them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.queueing import Queue, is_painted, queueing, wishes


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with queueing(tmp_path) as running:
        yield running


def test_a_job_is_queued_run_and_told_of(queue: Queue) -> None:
    """The whole way, with every field that RunPod's own answer has."""
    queue.painter.shut()
    id = queue.run(wishes(9))
    queue.begun()
    assert queue.get(f"status/{id}")["status"] == "IN_PROGRESS"
    queue.painter.open()
    job = queue.ended(id)
    assert job.keys() == {"id", "status", "delayTime", "executionTime", "workerId", "output"}
    assert (job["id"], job["status"]) == (id, "COMPLETED")
    assert job["delayTime"] >= 0
    assert job["executionTime"] >= 0
    assert is_painted(job["output"], 9)
    assert job["output"].keys() >= {"image", "prompt", "num_inference_steps", "lightning_enabled", "seed"}
