"""Rough pictures on the way: evenly spread, told to those who asked, and harmless when they fail."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from batching.previews import due
from core.errors import DeviceLost, OutOfDeviceMemory
from core.request import Image
from core.result import Progress
from tests.batching.conftest import StartMux
from tests.fakes import WAIT, PaintingPipeline, assert_accounted, is_picture_of, make_request


class Sketching(PaintingPipeline):
    """A pipeline whose previews show how many steps a row has behind it."""

    def __init__(self, fault: Exception | None = None) -> None:
        super().__init__()
        self.fault = fault
        self.asked: list[str] = []

    def preview(self, state: Any) -> Image:
        self.asked.append(state.request.id)
        if self.fault is not None:
            raise self.fault
        return Image(pixels=bytes([state.steps_run] * 3), width=1, height=1)


@pytest.mark.parametrize(
    ("steps", "previews", "told"),
    [
        (40, 0, []),
        (40, 1, [20]),
        (40, 3, [10, 20, 30]),
        (8, 2, [2, 5]),
        (4, 3, [1, 2, 3]),
        (3, 3, [1, 2]),
        (2, 3, [1]),
        (1, 3, []),
    ],
)
def test_previews_are_spread_evenly_before_the_end(steps: int, previews: int, told: list[int]) -> None:
    """The last step's is the result itself; a short schedule has fewer than were asked for."""
    assert [step for step in range(1, steps + 1) if due(step, steps, previews)] == told


def test_a_row_that_asked_is_shown_and_its_neighbour_is_not(start_mux: StartMux) -> None:
    """The neighbour pays nothing, and both get their own pictures."""
    pipeline = Sketching()
    mux = start_mux(pipeline)
    asking, other = replace(make_request("a"), previews=3), make_request("b")
    seen: dict[str, list[Progress]] = {"a": [], "b": []}
    answers = [mux.submit(request, seen[request.id].append) for request in (asking, other)]
    assert all(
        is_picture_of(answer.result(timeout=WAIT), request)
        for answer, request in zip(answers, (asking, other), strict=True)
    )
    assert [shown(progress) for progress in seen["a"]] == [1, 2, 3, None]
    assert [shown(progress) for progress in seen["b"]] == [None] * 4
    assert set(pipeline.asked) == {"a"}


def shown(progress: Progress) -> int | None:
    return None if progress.preview is None else progress.preview.pixels[0]


@pytest.mark.parametrize("fault", [ValueError("no colours"), OutOfDeviceMemory(), DeviceLost()])
def test_a_preview_that_fails_is_left_out_and_not_tried_again(fault: Exception, start_mux: StartMux) -> None:
    """It is a courtesy: no row may fail of it, and none may be slowed by it time and again."""
    pipeline = Sketching(fault)
    mux = start_mux(pipeline)
    request = replace(make_request(), previews=3)
    seen: list[Progress] = []
    assert is_picture_of(mux.submit(request, seen.append).result(timeout=WAIT), request)
    assert [progress.preview for progress in seen] == [None] * 4
    assert pipeline.asked == ["a"]
    assert_accounted(mux)


def test_a_pipeline_without_previews_is_no_worse(start_mux: StartMux) -> None:
    """The method is optional."""
    mux = start_mux(PaintingPipeline())
    seen: list[Progress] = []
    mux.submit(replace(make_request(), previews=2), seen.append).result(timeout=WAIT)
    assert [progress.step for progress in seen] == [1, 2, 3, 4]


def test_nobody_listening_costs_nothing(start_mux: StartMux) -> None:
    """Previews are made only to be told."""
    pipeline = Sketching()
    start_mux(pipeline).submit(replace(make_request(), previews=3)).result(timeout=WAIT)
    seen: Sequence[str] = pipeline.asked
    assert seen == []
