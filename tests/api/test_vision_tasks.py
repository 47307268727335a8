"""Vision models asked through RunPod's queue: ``input.task``, and beside it the fields of the routes."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from core.catalog import Catalog
from tests.api.findings import SEERS
from tests.api.queueing import Queue, is_painted, queueing, wishes
from tests.api.serving import PAINTER
from tests.api.test_vision_masks import read_rle
from tests.api.test_vision_service import PICTURE

ROWS = Catalog([PAINTER, *SEERS], default="painter")


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queue]:
    with queueing(tmp_path_factory.mktemp("jobs"), catalog=ROWS) as running:
        yield running


def output(queue: Queue, **fields: Any) -> Any:
    job = queue.ended(queue.run({"images": [PICTURE]} | fields))
    assert job["status"] == "COMPLETED", job
    return job["output"]


def test_each_task_answers_what_its_route_does(queue: Queue) -> None:
    """Also several pictures at once."""
    segmented = output(queue, task="segment", prompts=["a"], images=[PICTURE, PICTURE])
    assert len(segmented["results"]) == 2
    assert read_rle(segmented["results"][1][0]["result"]["masks_rle"][0]).sum() == 40 * 60
    detected = output(queue, task="detect", prompts=["Red Car"])
    assert detected["results"][0]["labels"] == ["Red Car"]
    assert output(queue, task="depth")["format"] == "png_base64"
    embedded = output(queue, task="embed", encoding="base64")
    assert embedded["features"]["pooler_output_shape"] == [1, 8]
    assert embedded["model_id"] == "org/feeler"


def test_what_was_found_can_be_drawn(queue: Queue) -> None:
    """A job cannot say what it takes, so a field does."""
    drawn = output(queue, task="depth", render=True)
    assert Pillow.open(io.BytesIO(base64.b64decode(drawn["image"]))).size == (80, 60)


def test_without_a_task_a_picture_is_made(queue: Queue) -> None:
    """As before there were any."""
    assert is_painted(queue.ended(queue.run(wishes(9)))["output"], 9)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"task": "paint"}, "task must be one of: segment, detect, depth, embed"),
        ({"task": None}, "task must be one of"),
        ({"task": "segment", "prompts": ["a"] * 300}, "300 prompts are over the limit of 64"),
        ({"task": "depth", "prompts": ["a"]}, "a field is unknown"),
        ({"task": "depth", "render": 1}, "render must be true or false"),
        ({"task": "embed", "model_id": "painter"}, "painter cannot embed; served here to embed: feeler"),
    ],
    ids=str,
)
def test_what_cannot_be_fails_with_a_sentence(queue: Queue, fields: dict[str, Any], sentence: str) -> None:
    """Plain text, as the platform's clients read it."""
    job = queue.ended(queue.run({"images": [PICTURE]} | fields))
    assert job["status"] == "FAILED"
    assert sentence in job["error"]


def test_an_answer_that_no_job_can_carry_is_refused(tmp_path: Path) -> None:
    """By the platform's limit, in a sentence, before the platform drops it."""
    with queueing(tmp_path, catalog=ROWS, output_limit=2000) as small:
        job = small.ended(small.run({"task": "segment", "images": [PICTURE], "prompts": ["a"]}))
        assert job["status"] == "COMPLETED"
        dense = {"task": "segment", "images": [PICTURE], "prompts": ["a"], "output_format": "dense"}
        job = small.ended(small.run(dense))
        assert (job["status"], job["code"]) == ("FAILED", "output_too_large")
