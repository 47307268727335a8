"""A device that is lost, dead or hangs: everyone is answered, and a restart is asked for once.

Where a job must reach the device before its deadline, time stands still until it has: on a busy machine
the device thread may wake up later than any short deadline, and then rightly never runs the job.
"""

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import replace

import pytest

from batching.job import JobState
from batching.mux import BatchMux, BatchPolicy
from core.errors import CapacityError, DeviceLost, ServingError
from core.request import InferenceRequest, Task
from core.result import InferenceResult
from core.vision import Depth, DepthMap
from tests.batching.conftest import StartMux
from tests.fakes import (
    WAIT,
    Clock,
    PaintedState,
    PaintingPipeline,
    Poison,
    Turnstile,
    make_request,
)

EIGHT = BatchPolicy(max_batch_size=8, hang_after=0.2, min_gain=0.0)


class Restarts:
    """Counts calls of ``on_fatal`` and lets a test wait for the first."""

    def __init__(self) -> None:
        self.reasons: queue.Queue[str] = queue.Queue()

    def __call__(self, reason: str) -> None:
        self.reasons.put(reason)

    def reason(self) -> str:
        return self.reasons.get(timeout=WAIT)


def assert_fatal(mux: BatchMux, restarts: Restarts, futures: Sequence[Future[InferenceResult]]) -> str:
    """Everyone has been answered device_lost, newcomers are refused, one restart is asked for."""
    reason = restarts.reason()
    for future in futures:
        error = future.exception(timeout=0)  # answered before on_fatal is called
        assert isinstance(error, ServingError)
        assert error.code == "device_lost"
    with pytest.raises(CapacityError) as caught:
        mux.submit(make_request("late"))
    assert caught.value.code == "not_ready"
    assert mux.stats().fatal == reason
    assert restarts.reasons.empty()
    return reason


@pytest.mark.parametrize("stage", ["prepare", "step", "decode"])
def test_a_lost_device_answers_everyone_and_asks_for_a_restart(start_mux: StartMux, stage: str) -> None:
    """Queued, running, of any key; also who waits for a model to be warmed."""
    gate, restarts = Turnstile("prepare"), Restarts()
    pipeline = PaintingPipeline(gate, Poison("a", stage=stage, error=DeviceLost()))
    mux = start_mux(pipeline, on_fatal=restarts)
    futures = [mux.submit(make_request("a", steps=1))]
    gate.waiting()
    futures += [mux.submit(make_request("b")), mux.submit(make_request("c", size=(32, 32)))]
    warmed = mux.warm("other")
    gate.open()
    assert_fatal(mux, restarts, futures)
    assert isinstance(warmed.exception(timeout=WAIT), DeviceLost)


def test_a_device_lost_while_loading_is_fatal_too(start_mux: StartMux) -> None:
    """A broken driver shows first in acquire."""
    restarts = Restarts()

    def acquire(model: str) -> PaintingPipeline:
        raise DeviceLost

    mux = start_mux(acquire, on_fatal=restarts)
    assert_fatal(mux, restarts, [mux.submit(make_request())])


@pytest.mark.parametrize("error", [SystemExit(), KeyboardInterrupt(), GeneratorExit()])
def test_a_dead_device_thread_is_noticed_within_a_second(start_mux: StartMux, error: BaseException) -> None:
    """Whatever killed it, nobody waits for it."""
    restarts = Restarts()
    mux = start_mux(PaintingPipeline(Poison("a", error=error)), on_fatal=restarts)
    futures = [mux.submit(make_request(id)) for id in "ab"]
    assert wait(futures, timeout=1.0).not_done == set()
    assert "died" in assert_fatal(mux, restarts, futures)


def test_a_hang_is_declared_once_its_rows_are_past_their_deadlines(start_mux: StartMux) -> None:
    """Those past it hear so, all others that the device is lost; a late return changes nothing."""
    gate, restarts, clock = Turnstile("step"), Restarts(), Clock()
    mux = start_mux(PaintingPipeline(gate), EIGHT, on_fatal=restarts, clock=clock)
    stuck = mux.submit(make_request("stuck", timeout=0.3, steps=1))
    gate.waiting()
    patient = mux.submit(make_request("patient", timeout=600))
    clock.advance(0.3)
    error = stuck.exception(timeout=1.0)
    assert isinstance(error, ServingError)
    assert error.code == "deadline_exceeded"
    assert wait([patient], timeout=1.0).not_done == set()
    assert "hangs in step" in assert_fatal(mux, restarts, [patient])
    gate.open()
    mux.close()
    assert mux.stats().jobs[JobState.EXPIRED] == 1
    assert mux.stats().jobs[JobState.FAILED] == 1


@pytest.mark.parametrize("timeout", [None, 3600.0])
def test_a_late_deadline_does_not_keep_a_hang_alive(start_mux: StartMux, timeout: float | None) -> None:
    """One patient caller must not hold the whole worker for an hour."""
    gate, restarts = Turnstile("step"), Restarts()
    mux = start_mux(PaintingPipeline(gate), BatchPolicy(hang_after=0.01, hang_limit=0.02), on_fatal=restarts)
    patient = mux.submit(make_request("patient", timeout=timeout))
    gate.waiting()
    assert wait([patient], timeout=WAIT).not_done == set()
    assert "hangs in step" in assert_fatal(mux, restarts, [patient])
    gate.open()


def test_a_hang_that_nobody_waits_for_is_seen(start_mux: StartMux) -> None:
    """Everyone left, but newcomers would still be let in to wait for a device that never returns."""
    gate, restarts = Turnstile("step"), Restarts()
    mux = start_mux(PaintingPipeline(gate), BatchPolicy(hang_after=0.01), on_fatal=restarts)
    left = mux.submit(make_request("left", timeout=3600))
    gate.waiting()
    left.cancel()
    assert "hangs in step" in restarts.reasons.get(timeout=WAIT)
    gate.open()


def test_a_short_deadline_alone_is_no_hang(start_mux: StartMux) -> None:
    """Otherwise any caller could end the process by asking for an answer in a millisecond."""
    gate, restarts, clock = Turnstile("step"), Restarts(), Clock()
    mux = start_mux(PaintingPipeline(gate), BatchPolicy(hang_after=30.0), on_fatal=restarts, clock=clock)
    hasty = mux.submit(make_request("hasty", timeout=0.001, steps=3))
    gate.waiting()
    clock.advance(0.001)
    assert isinstance(hasty.exception(timeout=WAIT), ServingError)
    another = mux.submit(make_request("another", timeout=29.0))
    clock.advance(29.0)
    assert isinstance(another.exception(timeout=WAIT), ServingError)  # a later round of the watchdog
    assert mux.stats().fatal is None
    gate.open()
    mux.submit(make_request("next")).result(timeout=WAIT)
    assert restarts.reasons.empty()


def test_the_same_call_is_a_hang_once_its_time_is_over(start_mux: StartMux) -> None:
    """The control of the test above: only ``hang_after`` stands between the two."""
    gate, restarts, clock = Turnstile("step"), Restarts(), Clock()
    mux = start_mux(PaintingPipeline(gate), BatchPolicy(hang_after=30.0), on_fatal=restarts, clock=clock)
    hasty = mux.submit(make_request("hasty", timeout=0.001))
    gate.waiting()
    clock.advance(30.1)
    assert isinstance(hasty.exception(timeout=WAIT), ServingError)
    assert "hangs in step" in restarts.reason()
    gate.open()


def test_a_call_is_no_hang_while_one_of_its_rows_has_time(start_mux: StartMux) -> None:
    """The patient neighbour's picture is still wanted."""
    gate, clock = Turnstile("step"), Clock()
    mux = start_mux(PaintingPipeline(gate), BatchPolicy(hang_after=0.01), clock=clock)
    plug = mux.submit(make_request("plug", steps=1))
    gate.waiting()
    futures = [
        mux.submit(make_request("hasty", timeout=0.1)),
        mux.submit(make_request("patient", timeout=60)),
    ]
    gate.pass_one()
    assert sorted(gate.waiting()) == ["hasty", "patient"]
    clock.advance(0.1)
    assert isinstance(futures[0].exception(timeout=WAIT), ServingError)
    probe = mux.submit(make_request("probe", timeout=0.3))
    clock.advance(0.3)
    assert isinstance(probe.exception(timeout=WAIT), ServingError)
    assert mux.stats().fatal is None
    gate.open()
    assert futures[1].result(timeout=WAIT)
    assert plug.result(timeout=WAIT)


class LookingPipeline(PaintingPipeline):
    """Finds the depth of each picture; telling of each may take long."""

    def decode(self, states: Sequence[PaintedState]) -> list[InferenceResult]:
        found = DepthMap(size=(16, 16), values=bytes(4 * 256), kind="depth", unit="metre")
        results = super().decode(states)
        return [
            result if state.request.ask is None else replace(result, output=found)
            for state, result in zip(states, results, strict=True)
        ]


def look(id: str) -> InferenceRequest:
    return replace(make_request(id, steps=1, timeout=600.0), task=Task.DEPTH, ask=Depth())


def test_what_was_found_is_told_row_by_row(start_mux: StartMux) -> None:
    """Each has ``hang_after`` to itself, the first is answered before the last is told, and one who left
    meanwhile costs no time: pictures full of large masks, abandoned, must not end the process."""
    gate, restarts, clock = Turnstile("prepare", "decode"), Restarts(), Clock()
    pipeline = LookingPipeline(gate)
    mux = start_mux(pipeline, replace(EIGHT, hang_after=30.0), on_fatal=restarts, clock=clock)
    plug = mux.submit(make_request("plug", size=(32, 32)))
    gate.waiting()  # so that the others come together
    first, left, last = (mux.submit(look(id)) for id in ("first", "left", "last"))
    gate.pass_one()
    assert gate.waiting() == ["plug"]  # decode
    gate.pass_one()
    assert plug.result(timeout=WAIT)
    assert gate.waiting() == ["first", "left", "last"]  # prepare
    gate.pass_one()
    assert gate.waiting() == ["first"]
    left.cancel()
    clock.advance(20.0)
    gate.pass_one()
    assert first.result(timeout=WAIT)
    assert gate.waiting() == ["last"]
    last.cancel()
    clock.advance(20.0)
    probe = mux.submit(make_request("probe", timeout=0.3))
    clock.advance(0.3)
    assert isinstance(probe.exception(timeout=WAIT), ServingError)  # the watchdog has looked
    assert mux.stats().fatal is None
    gate.open()
    assert mux.submit(look("next")).result(timeout=WAIT)
    assert pipeline.stages("decode")[1:] == [["first"], ["last"], ["next"]]
    assert restarts.reasons.empty()


def test_a_slow_load_expires_callers_and_is_no_hang(start_mux: StartMux) -> None:
    """Weights may take minutes; their callers' deadlines still hold."""
    gate, restarts, clock = Turnstile("acquire"), Restarts(), Clock()

    def acquire(model: str) -> PaintingPipeline:
        gate("acquire", [model])
        return PaintingPipeline()

    mux = start_mux(acquire, EIGHT, on_fatal=restarts, clock=clock)
    futures = [mux.submit(make_request(id, timeout=0.05)) for id in "ab"]
    gate.waiting()
    late = mux.submit(make_request("late", timeout=0.5, size=(32, 32)))
    clock.advance(0.5)
    for future in [*futures, late]:
        error = future.exception(timeout=WAIT)
        assert isinstance(error, ServingError)
        assert error.code == "deadline_exceeded"
    patient = mux.submit(make_request("patient"))
    gate.open()
    patient.result(timeout=WAIT)
    assert restarts.reasons.empty()


def test_threads_end_with_the_mux() -> None:
    """A worker that is closed leaves nothing behind."""
    before = threading.active_count()
    with BatchMux(lambda model: PaintingPipeline(), BatchPolicy()) as mux:
        mux.submit(make_request()).result(timeout=WAIT)
        assert threading.active_count() == before + 2
    assert threading.active_count() == before
