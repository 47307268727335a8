"""The mux as its callers see it: own answers, joining, progress, cancelling, refusing, draining."""

import threading
from concurrent.futures import CancelledError, Future, wait
from dataclasses import replace

import pytest

from batching.job import JobState
from batching.mux import BatchPolicy
from core.errors import CapacityError, RequestError, ServingError
from core.request import Image
from core.result import InferenceResult, Progress
from tests.batching.conftest import StartMux
from tests.fakes import (
    WAIT,
    Clock,
    PaintingPipeline,
    Turnstile,
    assert_accounted,
    is_picture_of,
    make_request,
)


def error_of(future: Future[InferenceResult]) -> ServingError:
    error = future.exception(timeout=WAIT)
    assert isinstance(error, ServingError)
    return error


def test_every_caller_gets_his_own_picture(start_mux: StartMux) -> None:
    """64 requests from 8 threads, mixed in steps, size, guidance and model."""
    mux = start_mux(PaintingPipeline())
    requests = [
        make_request(
            f"r{n}",
            steps=1 + n % 5,
            size=(16, 16 * (1 + n % 2)),
            cfg=1.0 + n % 3,
            seed=n,
            model=f"m{n // 32}",
        )
        for n in range(64)
    ]
    results: dict[str, InferenceResult] = {}

    def client(index: int) -> None:
        for request, future in [(request, mux.submit(request)) for request in requests[index::8]]:
            results[request.id] = future.result(timeout=WAIT)

    threads = [threading.Thread(target=client, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(is_picture_of(results[request.id], request) for request in requests)
    assert mux.stats().jobs[JobState.SUCCEEDED] == 64


def test_a_request_joins_between_steps(start_mux: StartMux) -> None:
    """Nobody waits for a window while others run."""
    gate = Turnstile("step")
    mux = start_mux(PaintingPipeline(gate))
    first = make_request("first", steps=3)
    answer = mux.submit(first)
    assert gate.waiting() == ["first"]
    joined = mux.submit(make_request("second", steps=1))
    gate.pass_one()
    assert sorted(gate.waiting()) == ["first", "second"]
    gate.pass_one()
    assert joined.result(timeout=WAIT).batch_size == 2
    assert gate.waiting() == ["first"]
    assert not answer.done()
    gate.open()
    result = answer.result(timeout=WAIT)
    assert is_picture_of(result, first)
    assert result.batch_size == 2


def test_a_backlog_runs_in_full_batches(start_mux: StartMux) -> None:
    """What waits while the device works must leave together."""
    gate = Turnstile("step")
    pipeline = PaintingPipeline(gate)
    mux = start_mux(pipeline, BatchPolicy(max_batch_size=4))
    futures = [mux.submit(make_request("first", steps=1))]
    gate.waiting()
    futures += [mux.submit(make_request(f"r{n}", steps=1)) for n in range(16)]
    gate.open()
    wait(futures, timeout=WAIT)
    assert mux.stats().batch_sizes == {1: 1, 4: 4}
    assert mux.stats().batch_stops == {"drained": 2, "size": 3}  # the last four left nobody behind
    by_id = {result.id: set(result.mates) for result in (future.result() for future in futures)}
    assert by_id["first"] == set()
    assert all(len(mates) == 3 and id not in mates for id, mates in by_id.items() if id != "first")
    assert all(id in by_id[mate] for id, mates in by_id.items() for mate in mates)


def test_times_and_batch_size_are_told(start_mux: StartMux) -> None:
    """They become response headers."""
    gate = Turnstile("prepare")
    mux = start_mux(PaintingPipeline(gate))
    answer = mux.submit(make_request())
    gate.waiting()
    gate.open()
    result = answer.result(timeout=WAIT)
    assert result.queue_seconds > 0
    assert result.inference_seconds > 0
    assert result.batch_size == 1
    assert set(mux.stats().stage_seconds) == {"acquire", "prepare", "step", "preview", "decode"}


def test_progress_is_reported_after_every_step(start_mux: StartMux) -> None:
    """And a callback that fails harms nobody."""
    seen: list[Progress] = []

    def listen(progress: Progress) -> None:
        seen.append(progress)
        raise RuntimeError("a listener's own fault")

    mux = start_mux(PaintingPipeline())
    mux.submit(make_request(steps=3), listen).result(timeout=WAIT)
    assert [(progress.step, progress.steps) for progress in seen] == [(1, 3), (2, 3), (3, 3)]


def test_progress_can_be_asked_for(start_mux: StartMux) -> None:
    """Position while queued, step while running, nothing afterwards."""
    gate = Turnstile("step")
    mux = start_mux(PaintingPipeline(gate), BatchPolicy(max_batch_size=1, order="fifo"))
    futures = [mux.submit(make_request(id, steps=2)) for id in "abc"]
    gate.waiting()
    gate.pass_one()
    gate.waiting()
    assert mux.progress("a") == Progress(state="running", step=1, steps=2)
    assert mux.progress("b") == Progress(state="queued", step=0, steps=2, position=0)
    assert mux.progress("c") == Progress(state="queued", step=0, steps=2, position=1)
    assert mux.progress("unknown") is None
    gate.open()
    wait(futures, timeout=WAIT)
    assert mux.progress("a") is None


def test_a_cancelled_job_that_was_queued_never_runs(start_mux: StartMux) -> None:
    """Cancelling costs nothing."""
    gate = Turnstile("step")
    pipeline = PaintingPipeline(gate)
    mux = start_mux(pipeline, BatchPolicy(max_batch_size=1))
    running = mux.submit(make_request("running"))
    gate.waiting()
    queued = mux.submit(make_request("queued"))
    assert mux.cancel("queued") is True
    assert mux.cancel("queued") is False
    assert error_of(queued).code == "cancelled"
    gate.open()
    running.result(timeout=WAIT)
    assert pipeline.stages("prepare") == [["running"]]


def test_a_cancelled_job_that_runs_leaves_at_the_next_step(start_mux: StartMux) -> None:
    """Its neighbour goes on alone."""
    gate = Turnstile("step")
    pipeline = PaintingPipeline(gate)
    mux = start_mux(pipeline)
    neighbour = make_request("neighbour", steps=3)
    answer = mux.submit(neighbour)
    gate.waiting()
    leaver = mux.submit(make_request("leaver", steps=30))
    gate.pass_one()
    gate.waiting()
    assert mux.cancel("leaver")
    assert error_of(leaver).code == "cancelled"
    gate.pass_one()
    assert gate.waiting() == ["neighbour"]
    gate.open()
    assert is_picture_of(answer.result(timeout=WAIT), neighbour)


def test_cancelling_the_future_cancels_the_job(start_mux: StartMux) -> None:
    """That is what a task that is cancelled, a client that left, does through wrap_future."""
    gate = Turnstile("step")
    mux = start_mux(PaintingPipeline(gate))
    futures = [mux.submit(make_request(id, steps=30)) for id in "ab"]
    gate.waiting()
    assert futures[0].cancel()
    assert wait([futures[0]], timeout=WAIT).not_done == set()
    with pytest.raises(CancelledError):
        futures[0].result(timeout=WAIT)
    assert mux.stats().jobs[JobState.CANCELLED] == 1
    gate.open()
    futures[1].result(timeout=WAIT)


def test_cancel_racing_completion_gives_one_terminal_state(start_mux: StartMux) -> None:
    """Whoever comes first; the books say the same as the future."""
    mux = start_mux(PaintingPipeline())
    outcomes = {"done": 0, "cancelled": 0}
    for n in range(300):
        future = mux.submit(make_request(f"{n}", steps=1 + n % 2))
        if n % 3:
            wait([future], timeout=(n % 7) * 1e-5)
        cancelled = future.cancel() if n % 2 else mux.cancel(f"{n}")
        wait([future], timeout=WAIT)
        was_cancelled = future.cancelled() or isinstance(future.exception(timeout=0), RequestError)
        assert was_cancelled == cancelled
        outcomes["cancelled" if was_cancelled else "done"] += 1
        assert_accounted(mux)
    jobs = mux.stats().jobs
    assert (jobs[JobState.SUCCEEDED], jobs[JobState.CANCELLED]) == (outcomes["done"], outcomes["cancelled"])


def test_a_caller_may_call_back_into_the_mux(start_mux: StartMux) -> None:
    """Callbacks of futures run outside the lock."""
    mux = start_mux(PaintingPipeline())
    chained: Future[Future[InferenceResult]] = Future()

    def submit_next(done: Future[InferenceResult]) -> None:
        mux.stats()
        mux.cancel("nobody")
        chained.set_result(mux.submit(make_request("next")))

    mux.submit(make_request("first")).add_done_callback(submit_next)
    assert chained.result(timeout=WAIT).result(timeout=WAIT).id == "next"


def test_an_expired_job_that_was_queued_never_runs(start_mux: StartMux) -> None:
    """Its caller is answered on time although the device is busy."""
    gate = Turnstile("step")
    pipeline = PaintingPipeline(gate)
    mux = start_mux(pipeline, BatchPolicy(max_batch_size=1))
    running = mux.submit(make_request("running"))
    gate.waiting()
    late = mux.submit(make_request("late", timeout=0.05))
    assert error_of(late).code == "deadline_exceeded"
    gate.open()
    running.result(timeout=WAIT)
    assert pipeline.stages("prepare") == [["running"]]
    assert mux.stats().jobs[JobState.EXPIRED] == 1


def test_an_expired_job_that_runs_leaves_at_the_next_step(start_mux: StartMux) -> None:
    """And its neighbours do not notice."""
    gate, clock = Turnstile("step"), Clock()
    mux = start_mux(PaintingPipeline(gate), clock=clock)
    neighbour = make_request("neighbour", steps=3)
    answer = mux.submit(neighbour)
    gate.waiting()
    late = mux.submit(make_request("late", steps=30, timeout=0.3))
    gate.pass_one()
    assert sorted(gate.waiting()) == ["late", "neighbour"]
    clock.advance(0.3)  # not before: a busy device thread might otherwise never run it
    assert error_of(late).code == "deadline_exceeded"
    gate.pass_one()
    assert gate.waiting() == ["neighbour"]
    gate.open()
    assert is_picture_of(answer.result(timeout=WAIT), neighbour)


def test_a_full_queue_is_refused_at_once(start_mux: StartMux) -> None:
    """By count and by bytes, with the time to come back after; what was accepted is done."""
    gate = Turnstile("step")
    mux = start_mux(
        PaintingPipeline(gate), BatchPolicy(max_batch_size=1, max_queue=2, max_queue_bytes=50_000)
    )
    picture = Image(pixels=bytes(3 * 100 * 100), width=100, height=100)
    futures = [mux.submit(make_request("running", steps=1))]
    gate.waiting()
    futures.append(mux.submit(make_request("large", steps=1, images=(picture,))))
    with pytest.raises(CapacityError, match="MiB") as caught:
        mux.submit(make_request("also large", images=(picture,)))
    assert caught.value.code == "queue_full"
    futures.append(mux.submit(make_request("small", steps=1)))
    with pytest.raises(CapacityError, match="limit is 2") as caught:
        mux.submit(make_request("one too many"))
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 120
    gate.open()
    assert all(future.result(timeout=WAIT) for future in futures)
    assert mux.stats().accepted == 3


@pytest.mark.parametrize("join", ["step", "batch"])
@pytest.mark.parametrize("order", ["remaining", "fifo"])
def test_every_policy_serves_a_mixed_crowd(start_mux: StartMux, join: str, order: str) -> None:
    """join and order change who waits, never what is answered."""
    policy = replace(BatchPolicy(max_wait=0.002), join=join, order=order)  # type: ignore[arg-type]
    mux = start_mux(PaintingPipeline(), policy)
    requests = [make_request(f"r{n}", steps=1 + n % 4, size=(16, 16 * (1 + n % 3))) for n in range(60)]
    futures = [mux.submit(request) for request in requests]
    assert all(
        is_picture_of(future.result(timeout=WAIT), request)
        for future, request in zip(futures, requests, strict=True)
    )
