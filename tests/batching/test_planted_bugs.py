"""The checks of the other tests, turned on muxes and pipelines that are broken on purpose."""

from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import replace
from typing import Any

import pytest

from batching.job import Job, JobState
from batching.ledger import Ledger
from batching.mux import BatchMux, BatchPolicy
from batching.service import Service
from core.errors import ServingError
from core.pipeline import Pipeline
from core.request import Image
from core.result import InferenceResult
from tests.fakes import (
    PaintedState,
    PaintingPipeline,
    Poison,
    Turnstile,
    assert_accounted,
    is_picture_of,
    make_request,
)


class MuxWith(BatchMux):
    """A mux whose books are kept by another ledger."""

    ledger_type: type[Ledger] = Ledger

    def __init__(self, pipeline: Pipeline[Any]) -> None:
        super().__init__(lambda model: pipeline, BatchPolicy(max_batch_size=8))
        self._ledger = self.ledger_type(self._policy, self._clock, self._lock)
        self._service = Service(lambda model: pipeline, self._ledger)


def check_a_crowd(mux: BatchMux, gate: Turnstile) -> None:
    """Twelve rows of two lengths, one of them poison: each its own answer, once, and all accounted for."""
    requests = [make_request(f"r{n}", steps=2 + n % 2) for n in range(12)]
    with mux:
        futures = [mux.submit(request) for request in requests]
        gate.waiting()
        gate.open()
        lost = wait(futures, timeout=1.0).not_done
        assert not lost, "an answer was lost"
        for request, future in zip(requests, futures, strict=True):
            error = future.exception()
            if request.id == "r5":
                assert isinstance(error, ServingError)
                assert error.code == "pipeline_error"
            else:
                assert error is None
                assert is_picture_of(future.result(), request), "misrouted"
        assert_accounted(mux)
        jobs = mux.stats().jobs
        assert (jobs[JobState.SUCCEEDED], jobs[JobState.FAILED]) == (11, 1)


def test_the_check_passes_on_the_real_thing() -> None:
    """Or the controls below would prove nothing."""
    gate = Turnstile("step")
    check_a_crowd(MuxWith(PaintingPipeline(gate, Poison("r5"))), gate)


class SwappedPictures(PaintingPipeline):
    """Ids in order, pictures not: only pixels can show it."""

    def decode(self, states: Sequence[PaintedState]) -> list[InferenceResult]:
        results = super().decode(states)
        images: list[Image] = [result.image for result in results]
        return [replace(r, output=image) for r, image in zip(results, images[1:] + images[:1], strict=True)]


class SwallowedException(PaintingPipeline):
    """The poison row is skipped and passed off as done."""

    def step(self, states: Sequence[PaintedState]) -> None:
        for state in states:
            if state.request.id == "r5":
                state.steps_run += 1
        super().step([state for state in states if state.request.id != "r5"])


class OneStepTooMany(PaintingPipeline):
    """The picture of a row that was stepped once too often."""

    def decode(self, states: Sequence[PaintedState]) -> list[InferenceResult]:
        return super().decode([PaintedState(state.request, state.steps_run + 1) for state in states])


@pytest.mark.parametrize("pipeline_type", [SwappedPictures, SwallowedException, OneStepTooMany])
def test_a_pipeline_that_lies_is_caught_by_its_pixels(pipeline_type: type[PaintingPipeline]) -> None:
    """That is what the fake paints ids and steps for."""
    gate = Turnstile("step")
    with pytest.raises(AssertionError):
        check_a_crowd(MuxWith(pipeline_type(gate, Poison("r5"))), gate)


class DropsAnAnswer(Ledger):
    def settle(self, job: Job, to: JobState, answer: InferenceResult | ServingError) -> None:
        super().settle(job, to, answer)
        if job.id == "r7" and self._outbox:
            self._outbox.pop()


class SwapsTickets(Ledger):
    """Two callers get each other's futures."""

    def settle(self, job: Job, to: JobState, answer: InferenceResult | ServingError) -> None:
        tickets = self.tickets
        if job.id == "r1" and "r3" in tickets:
            tickets["r1"].future, tickets["r3"].future = tickets["r3"].future, tickets["r1"].future
        super().settle(job, to, answer)


class ForgetsTheFailed(Ledger):
    """The error is delivered and not counted."""

    def settle(self, job: Job, to: JobState, answer: InferenceResult | ServingError) -> None:
        super().settle(job, to, answer)
        if to is JobState.FAILED:
            self.scheduler._ended[JobState.FAILED] -= 1


class SwallowsErrors(Ledger):
    def settle(self, job: Job, to: JobState, answer: InferenceResult | ServingError) -> None:
        if to is not JobState.FAILED or job.id != "r5":
            super().settle(job, to, answer)


class BlamesNeighbours(Ledger):
    """The whole batch fails with its poison row, as in servers that do not isolate."""

    def settle(self, job: Job, to: JobState, answer: InferenceResult | ServingError) -> None:
        super().settle(job, to, answer)
        if job.id == "r5" and isinstance(answer, ServingError):
            self.settle_all(answer)


@pytest.mark.parametrize(
    "ledger_type", [DropsAnAnswer, SwapsTickets, ForgetsTheFailed, SwallowsErrors, BlamesNeighbours]
)
def test_a_broken_mux_is_caught(ledger_type: type[Ledger]) -> None:
    """Lost, misrouted, miscounted, swallowed, shared: each must be seen."""

    class Broken(MuxWith):
        pass

    Broken.ledger_type = ledger_type
    gate = Turnstile("step")
    with pytest.raises(AssertionError):
        check_a_crowd(Broken(PaintingPipeline(gate, Poison("r5"))), gate)
