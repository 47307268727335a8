"""What a faulty pipeline, a small memory, a lost device or a hang does to those who share it."""

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any

import pytest

from batching.mux import BatchMux, BatchPolicy
from core.errors import OutOfDeviceMemory, RequestError, ServingError
from core.request import InferenceRequest
from core.result import InferenceResult
from tests.batching.conftest import StartMux
from tests.fakes import (
    WAIT,
    Hiccup,
    Hook,
    PaintedState,
    PaintingPipeline,
    Poison,
    SmallMemory,
    Turnstile,
    is_picture_of,
    make_request,
)

EIGHT = BatchPolicy(max_batch_size=8, hang_after=0.2, min_gain=0.0)


def batch(
    mux: BatchMux, gate: Turnstile, count: int = 8, steps: int = 3
) -> dict[str, Future[InferenceResult]]:
    """``count`` rows that are prepared and stepped together."""
    futures = {"plug": mux.submit(make_request("plug", size=(16, 32), steps=1))}
    gate.waiting()
    futures |= {f"r{n}": mux.submit(make_request(f"r{n}", steps=steps)) for n in range(count)}
    gate.open()
    wait(futures.values(), timeout=WAIT)
    return futures


def codes(futures: dict[str, Future[InferenceResult]]) -> dict[str, str]:
    """Of those that failed. The others must have their own picture."""
    failed: dict[str, str] = {}
    for id, future in futures.items():
        error = future.exception(timeout=WAIT)
        if error is None:
            request = (
                make_request("plug", size=(16, 32), steps=1) if id == "plug" else make_request(id, steps=3)
            )
            assert is_picture_of(future.result(), request)
        else:
            assert isinstance(error, ServingError)
            failed[id] = error.code
    return failed


@pytest.mark.parametrize("stage", ["prepare", "step", "decode"])
@pytest.mark.parametrize("poison", range(8))
def test_a_poison_row_fails_alone_in_every_stage_and_place(
    start_mux: StartMux, caplog: pytest.LogCaptureFixture, stage: str, poison: int
) -> None:
    """Its seven neighbours have the picture they would have had without it."""
    gate = Turnstile("step")
    pipeline = PaintingPipeline(gate, Poison(f"r{poison}", stage=stage))
    futures = batch(start_mux(pipeline, EIGHT), gate)
    assert codes(futures) == {f"r{poison}": "pipeline_error"}
    error = futures[f"r{poison}"].exception()
    assert isinstance(error, ServingError)
    assert "poison" not in error.message
    assert "this row is poison" in caplog.text
    extra = sum(len(ids) > 0 and "plug" not in ids for ids in pipeline.stages(stage)) - (
        3 if stage == "step" else 1
    )
    assert extra <= math.log2(8) + 1


def test_the_pipelines_own_errors_reach_the_caller(start_mux: StartMux) -> None:
    """A request that only prepare can find wrong is the caller's to mend."""
    gate = Turnstile("step")
    fault = RequestError("invalid_parameter", "the prompt has too many tokens", param="prompt")
    pipeline = PaintingPipeline(gate, Poison("r2", stage="prepare", error=fault))
    futures = batch(start_mux(pipeline, EIGHT), gate)
    assert codes(futures) == {"r2": "invalid_parameter"}
    assert futures["r2"].exception() is fault


def test_a_fault_that_passes_fails_nobody(start_mux: StartMux) -> None:
    """One bad moment of the device is no row's fault."""
    gate = Turnstile("step")
    futures = batch(start_mux(PaintingPipeline(gate, Hiccup()), EIGHT), gate)
    assert codes(futures) == {}


@pytest.mark.parametrize("stage", ["prepare", "step", "decode"])
def test_out_of_memory_splits_and_all_answer(start_mux: StartMux, stage: str) -> None:
    """8 rows where 3 fit; the size that failed is not tried again for a while."""
    gate = Turnstile("step")
    pipeline = PaintingPipeline(gate, SmallMemory(3, OutOfDeviceMemory, stage))
    mux = start_mux(pipeline, EIGHT)
    assert codes(batch(mux, gate)) == {}
    calls = pipeline.stages(stage)
    assert [len(ids) for ids in calls].count(8) == 1
    wait([mux.submit(make_request(f"r{n}", steps=3)) for n in range(8)], timeout=WAIT)
    assert all(len(ids) <= 4 for ids in pipeline.stages(stage)[len(calls) :])


def test_out_of_memory_at_one_row_answers_that_row(start_mux: StartMux) -> None:
    """The thread lives, and the next request works."""
    gate = Turnstile("step")
    mux = start_mux(PaintingPipeline(gate, Poison("r5", error=OutOfDeviceMemory())), EIGHT)
    assert codes(batch(mux, gate)) == {"r5": "gpu_out_of_memory"}
    mux.submit(make_request("next")).result(timeout=WAIT)


class Mismatched(PaintingPipeline):
    """Batches come out of ``stage`` as ``spoil`` leaves them, the first ``times`` times."""

    def __init__(self, *hooks: Hook, stage: str, spoil: Callable[[list[Any]], list[Any]], times: int) -> None:
        super().__init__(*hooks)
        self.stage, self.spoil, self.times = stage, spoil, times

    def prepare(self, requests: Sequence[InferenceRequest]) -> list[PaintedState]:
        return self._spoilt("prepare", super().prepare(requests))

    def decode(self, states: Sequence[PaintedState]) -> list[InferenceResult]:
        return self._spoilt("decode", super().decode(states))

    def _spoilt(self, stage: str, answers: list[Any]) -> list[Any]:
        if stage != self.stage or len(answers) < 2 or not self.times:
            return answers
        self.times -= 1
        return self.spoil(answers)


SPOILT: dict[str, tuple[str, Callable[[list[Any]], list[Any]]]] = {
    "short prepare": ("prepare", lambda answers: answers[:-1]),
    "long prepare": ("prepare", lambda answers: answers + answers[:1]),
    "shifted prepare": ("prepare", lambda answers: answers[1:] + answers[:1]),
    "short": ("decode", lambda answers: answers[:-1]),
    "empty": ("decode", lambda answers: []),
    "long": ("decode", lambda answers: answers + answers[:1]),
    "shifted": ("decode", lambda answers: answers[1:] + answers[:1]),
    "swapped": ("decode", lambda answers: [answers[1], answers[0], *answers[2:]]),
    "doubled": ("decode", lambda answers: answers[:1] * len(answers)),
}


@pytest.mark.parametrize("how", [how for how in SPOILT if how != "shifted prepare"])
def test_a_list_that_once_does_not_match_costs_nobody_his_picture(start_mux: StartMux, how: str) -> None:
    """Rows whose answers cannot be told apart run again in smaller groups."""
    gate = Turnstile("step")
    stage, spoil = SPOILT[how]
    pipeline = Mismatched(gate, stage=stage, spoil=spoil, times=1)
    assert codes(batch(start_mux(pipeline, EIGHT), gate)) == {}
    assert pipeline.times == 0


@pytest.mark.parametrize("how", list(SPOILT))
def test_a_list_that_never_matches_is_never_misrouted(start_mux: StartMux, how: str) -> None:
    """A picture is its owner's or it is an error. ``codes`` looks at the pixels."""
    gate = Turnstile("step")
    stage, spoil = SPOILT[how]
    pipeline = Mismatched(gate, stage=stage, spoil=spoil, times=1000)
    failed = codes(batch(start_mux(pipeline, EIGHT), gate))
    assert set(failed.values()) <= {"pipeline_error"}
    assert pipeline.times < 1000


class FinishedStates(PaintingPipeline):
    def prepare(self, requests: Sequence[InferenceRequest]) -> list[PaintedState]:
        return [PaintedState(request, request.steps) for request in requests]


class WrongSize(PaintingPipeline):
    def decode(self, states: Sequence[PaintedState]) -> list[InferenceResult]:
        shown = [
            PaintedState(make_request("r3", size=(32, 32), steps=3), state.steps_run)
            if state.request.id == "r3"
            else state
            for state in states
        ]
        return super().decode(shown)


class SkipsAStep(PaintingPipeline):
    """One row is never moved."""

    def step(self, states: Sequence[PaintedState]) -> None:
        super().step([state for state in states if state.request.id != "r3"])


class StepsTwice(PaintingPipeline):
    def step(self, states: Sequence[PaintedState]) -> None:
        super().step(states)
        for state in states:
            state.steps_run += state.request.id == "r3"


class RaisesAfterMoving(PaintingPipeline):
    """Breaks its promise to leave the states as they were when it raises."""

    def step(self, states: Sequence[PaintedState]) -> None:
        ids = [state.request.id for state in states]
        super().step([state for state in states if state.request.id == "r3"] if len(ids) > 1 else states)
        if len(ids) > 1 and "r3" in ids:
            raise ValueError("half-way")
        if len(ids) > 1:
            super().step(states)


@pytest.mark.parametrize("pipeline_type", [WrongSize, SkipsAStep, StepsTwice, RaisesAfterMoving])
def test_a_row_that_came_out_wrong_fails_alone(
    start_mux: StartMux, pipeline_type: type[PaintingPipeline]
) -> None:
    """A wrong size or a wrong number of steps is a fault, not a picture."""
    gate = Turnstile("step")
    futures = batch(start_mux(pipeline_type(gate), EIGHT), gate)
    assert codes(futures) == {"r3": "pipeline_error"}


def test_a_state_that_is_finished_before_its_first_step_is_a_fault(start_mux: StartMux) -> None:
    """Nobody would ever decode it."""
    future = start_mux(FinishedStates()).submit(make_request())
    error = future.exception(timeout=WAIT)
    assert isinstance(error, ServingError)
    assert error.code == "pipeline_error"


def test_nothing_is_logged_on_a_good_day(start_mux: StartMux, caplog: pytest.LogCaptureFixture) -> None:
    """A log line is a fault someone should look at."""
    caplog.set_level(logging.WARNING)
    mux = start_mux(PaintingPipeline())
    wait([mux.submit(make_request(f"r{n}")) for n in range(20)], timeout=WAIT)
    assert caplog.records == []
