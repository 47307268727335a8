"""How models come and go in the mux, and how the mux itself goes."""

import threading
from concurrent.futures import Future

import pytest

from batching.mux import BatchMux, BatchPolicy
from core.errors import CapacityError, ExecutionError, ServingError
from core.result import InferenceResult
from tests.batching.conftest import StartMux
from tests.fakes import WAIT, PaintingPipeline, Turnstile, assert_accounted, make_request


def error_of(future: Future[InferenceResult]) -> ServingError:
    error = future.exception(timeout=WAIT)
    assert isinstance(error, ServingError)
    return error


def test_drain_finishes_what_was_accepted(start_mux: StartMux) -> None:
    """Queued work included; newcomers are told when to come back."""
    gate = Turnstile("step")
    mux = start_mux(PaintingPipeline(gate), BatchPolicy(max_batch_size=1))
    futures = [mux.submit(make_request(id, steps=2)) for id in "abc"]
    gate.waiting()
    drained: Future[bool] = Future()
    thread = threading.Thread(target=lambda: drained.set_result(mux.drain(WAIT)))
    thread.start()
    while not mux.stats().draining:
        assert thread.is_alive()
    with pytest.raises(CapacityError) as caught:
        mux.submit(make_request("late"))
    assert caught.value.code == "shutting_down"
    assert caught.value.retry_after is not None
    gate.open()
    assert drained.result(timeout=WAIT) is True
    thread.join()
    assert all(future.done() and future.exception() is None for future in futures)


def test_what_drain_cannot_finish_is_answered(start_mux: StartMux) -> None:
    """Nobody is left hanging when the time is up."""
    gate = Turnstile("step")
    mux = start_mux(PaintingPipeline(gate), BatchPolicy(max_batch_size=1))
    futures = [mux.submit(make_request(id)) for id in "ab"]
    gate.waiting()
    assert mux.drain(0.01) is False
    assert {error_of(future).code for future in futures} == {"shutting_down"}
    gate.open()


def test_an_idle_mux_drains_at_once(start_mux: StartMux) -> None:
    """SIGTERM while idle must not wait for anything."""
    assert start_mux(PaintingPipeline()).drain(WAIT) is True


def test_close_answers_everyone() -> None:
    """Also a mux that was never started."""
    mux = BatchMux(lambda model: PaintingPipeline(), BatchPolicy())
    future = mux.submit(make_request())
    mux.close()
    assert error_of(future).code == "shutting_down"
    assert_accounted(mux)


def test_a_model_is_warmed_on_the_device_thread(start_mux: StartMux) -> None:
    """Loading happens where the pipeline will be used, and its fault is told."""
    threads: list[str] = []

    def acquire(model: str) -> PaintingPipeline:
        threads.append(threading.current_thread().name)
        if model == "missing":
            raise CapacityError("model_loading", "not now")
        return PaintingPipeline()

    mux = start_mux(acquire)
    mux.warm("paint").result(timeout=WAIT)
    assert isinstance(mux.warm("missing").exception(timeout=WAIT), CapacityError)
    mux.submit(make_request()).result(timeout=WAIT)
    assert set(threads) == {"device"}


def test_warming_another_model_waits_for_the_rows_in_memory(start_mux: StartMux) -> None:
    """acquire may evict, so it must not be called with rows in memory; nor may it wait for ever."""
    gate = Turnstile("step")
    acquired: list[str] = []

    def acquire(model: str) -> PaintingPipeline:
        acquired.append(model)
        return PaintingPipeline(gate)

    mux = start_mux(acquire, BatchPolicy(max_batch_size=1))
    futures = [mux.submit(make_request(id, steps=2)) for id in "ab"]
    gate.waiting()
    warmed = mux.warm("other")
    gate.pass_one()
    assert gate.waiting() == ["a"]
    assert acquired == ["paint"]
    gate.open()
    warmed.result(timeout=WAIT)
    assert all(future.result(timeout=WAIT) for future in futures)
    assert acquired == ["paint", "other", "paint"]


def test_a_failed_load_answers_every_waiter_and_is_tried_again(start_mux: StartMux) -> None:
    """With the error it raised; the thread lives."""
    gate = Turnstile("acquire")
    faults: list[Exception] = [CapacityError("model_loading", "no space"), OSError("/secret/path")]

    def acquire(model: str) -> PaintingPipeline:
        gate("acquire", [model])
        if faults:
            raise faults.pop(0)
        return PaintingPipeline()

    mux = start_mux(acquire)
    waiters = [mux.submit(make_request(f"r{n}", size=(16, 16 * (1 + n % 3)))) for n in range(6)]
    gate.waiting()
    gate.open()
    assert {error_of(future).code for future in waiters} == {"model_loading"}
    opaque = error_of(mux.submit(make_request("again")))
    assert isinstance(opaque, ExecutionError)
    assert "secret" not in opaque.message
    mux.submit(make_request("third time")).result(timeout=WAIT)


def test_callers_of_another_model_do_not_get_the_load_failure(start_mux: StartMux) -> None:
    """It is not theirs."""

    def acquire(model: str) -> PaintingPipeline:
        if model == "broken":
            raise CapacityError("model_loading", "no")
        return PaintingPipeline()

    mux = start_mux(acquire)
    futures = {model: mux.submit(make_request(model, model=model)) for model in ("broken", "paint")}
    assert futures["paint"].result(timeout=WAIT)
    assert error_of(futures["broken"]).code == "model_loading"


def test_the_pipeline_is_asked_for_when_no_rows_are_in_memory(start_mux: StartMux) -> None:
    """The manager may then evict whatever it likes, and never sees two pipelines in use."""
    acquired: list[str] = []

    def acquire(model: str) -> PaintingPipeline:
        acquired.append(model)
        return PaintingPipeline()

    mux = start_mux(acquire)
    for model in ("a", "b", "a"):
        mux.submit(make_request(model, model=model)).result(timeout=WAIT)
    assert acquired == ["a", "b", "a"]


def test_a_chore_waits_for_the_rows_in_memory_and_gets_the_device(start_mux: StartMux) -> None:
    """It may throw out the model that the rows are in; afterwards the model is loaded again."""
    gate, loads = Turnstile("step"), []

    def acquire(model: str) -> PaintingPipeline:
        loads.append(model)
        return PaintingPipeline(gate)

    mux = start_mux(acquire)
    running = mux.submit(make_request("a", steps=2))
    gate.waiting()
    chore = mux.between(lambda name: (name, running.done(), threading.current_thread().name), "x")
    waiting = mux.submit(make_request("b"))
    assert not chore.done()
    gate.open()
    assert chore.result(timeout=WAIT) == ("x", True, "device")
    waiting.result(timeout=WAIT)
    assert loads == ["paint", "paint"]


def test_a_chore_that_fails_as_foreseen_leaves_the_mux_working(start_mux: StartMux) -> None:
    """Its caller is answered, and so is the next."""
    mux = start_mux(PaintingPipeline())

    def refuse() -> None:
        raise CapacityError("not_ready", "no")

    assert isinstance(mux.between(refuse).exception(timeout=WAIT), CapacityError)
    mux.submit(make_request("a")).result(timeout=WAIT)
