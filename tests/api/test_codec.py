"""Answers that take long to write end with their callers and their deadlines."""

import asyncio
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image as Pillow

from api.app import ApiOptions
from api.coco import coco
from api.codec import Codec, Term
from api.vision_answers import Written
from api.vision_drawing import drawing
from core.errors import ExecutionError, RequestError
from core.request import Image
from core.result import InferenceResult
from core.vision import Segment, Segmentation, SegmentPrompt
from tests.api.findings import CUTTER, VISION, found_in
from tests.api.serving import serving
from tests.api.test_vision_service import encoded

PICTURE = Image(pixels=bytes(8 * 6 * 3), width=8, height=6)
REQUEST = CUTTER.look(id="look", image=PICTURE, ask=Segment(prompts=(SegmentPrompt(text="a"),)))


def test_what_a_caller_who_left_was_to_get_is_not_written_to_the_end() -> None:
    """Minutes of outlines would keep a thread from everybody else's pictures."""
    begun, ended = threading.Event(), threading.Event()

    def endless(term: Term) -> None:
        begun.set()
        try:
            while True:
                term.check()
                ended.wait(0.001)
        except RequestError:
            ended.set()

    async def leave(codec: Codec) -> None:
        writing = asyncio.ensure_future(codec.write(endless, None))
        await asyncio.to_thread(begun.wait, 10)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing

    codec = Codec(1, 10)
    try:
        asyncio.run(leave(codec))
        assert ended.wait(10)
    finally:
        codec.close()


def test_a_term_ends_at_its_deadline() -> None:
    """And not before, nor where there is none."""
    Term().check()
    Term(time.monotonic() + 60).check()
    with pytest.raises(ExecutionError) as late:
        Term(time.monotonic() - 1).check()
    assert late.value.code == "deadline_exceeded"


def found() -> Segmentation:
    findings = found_in(REQUEST)
    assert isinstance(findings, Segmentation)
    assert findings.prompts[0]
    return findings


@pytest.mark.parametrize("form", ["rle", "polygons", "coco_rle", "png", "dense", "drawn", "coco"])
def test_every_form_of_masks_asks_between_two_of_them(form: str) -> None:
    """Hundreds of large masks take minutes in any form."""

    def write(term: Term) -> None:
        if form == "drawn":
            result = InferenceResult(id="look", output=found(), model="cutter", seed=0, steps=1)
            drawing(REQUEST, result, term)
        elif form == "coco":
            coco(REQUEST, found(), term)
        else:
            Written(form, 2**20, term).instances(found().prompts[0])  # type: ignore[arg-type]

    write(Term())
    with pytest.raises(ExecutionError, match="not written within its time"):
        write(Term(time.monotonic() - 1))


def test_the_vision_service_keeps_the_deadline_while_it_writes() -> None:
    """Ten outlines of noise take several times as long as the whole request may."""
    noise = np.random.default_rng(0).integers(0, 2, (600, 600, 1), np.uint8) * np.uint8(255)
    picture = encoded(Pillow.fromarray(np.repeat(noise, 3, axis=2)))
    body = {"images": [picture], "prompts": ["a"] * 10, "threshold": 0, "output_format": "polygons"}
    with serving(ApiOptions(timeout=2.0), catalog=VISION) as running:
        headers = {"Content-Type": "application/json"}
        answer = running.client.request("POST", "/inference/sam3", json.dumps(body).encode(), headers)
    assert (answer.status, answer.json()["code"]) == (504, "deadline_exceeded")
    assert "not written within its time" in answer.json()["error"]
