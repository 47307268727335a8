"""The benchmark of a step's cost compares what it says it does."""

from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.step_batching import BATCHES, TARGET, Line, measure, requests
from core.pipeline import BatchKey
from core.request import InferenceRequest
from core.result import InferenceResult
from core.spec import PipelineSpec
from tests.pipelines.rows import PAINTERS_HERE


@pytest.mark.parametrize("spec", PAINTERS_HERE, ids=lambda spec: spec.name)
def test_the_rows_of_a_batch_may_share_a_forward(spec: PipelineSpec) -> None:
    """Otherwise it would time what the mux never does."""
    rows = requests(spec, 128, 8)
    assert len({BatchKey.of(row) for row in rows}) == 1
    assert len({row.id for row in rows}) == len({row.seed for row in rows}) == 8
    assert len({row.prompt for row in rows}) == 8


class Counting:
    """Notes how many rows each step had."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def prepare(self, requests: Sequence[InferenceRequest]) -> list[Any]:
        return list(requests)

    def step(self, states: Sequence[Any]) -> None:
        self.steps.append(len(states))

    def decode(self, states: Sequence[Any]) -> list[InferenceResult]:
        raise AssertionError("what is timed is the step alone")


def test_every_batch_size_takes_its_turn_in_every_round() -> None:
    """A slow minute of the host must not fall on one of them alone; the first steps do not count."""
    pipeline = Counting()
    line = measure(pipeline, PAINTERS_HERE[0], 128, rounds=3)
    assert pipeline.steps == [*BATCHES] * 4
    assert line.shares[0] == 1.0
    assert len(line.shares) == len(BATCHES)


def test_a_batch_that_costs_more_than_its_rows_alone_is_a_miss() -> None:
    """``make bench`` must show it."""
    assert not Line(0.1, [1.0, 0.9, TARGET, 0.8]).missed
    assert Line(0.1, [1.0, 0.9, TARGET + 0.01, 0.8]).missed
    assert str(Line(0.1, [1.0, 1.5])).endswith("MISSED")
