"""``BatchMux``: callers of any thread on one side, one device thread on the other, one lock between.

The only module with threads. Under the lock there are only the scheduler and the ledger: never a
pipeline, a future's callback or any other code of a caller.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from batching.job import Job, JobState
from batching.ledger import Ledger
from batching.policy import BatchPolicy
from batching.scheduler import Rest
from batching.service import Service, progress_of
from batching.stats import MuxStats
from core.errors import CapacityError, DeviceLost, RequestError, ServingError
from core.pipeline import Pipeline
from core.request import InferenceRequest
from core.result import InferenceResult, OnProgress, Progress

__all__ = ["BatchMux", "BatchPolicy", "MuxStats"]

log = logging.getLogger(__name__)
Value = TypeVar("Value")

_WATCH_SECONDS = 0.2
_RESTART_SECONDS = 10.0  # when to try again after a shutdown


class BatchMux:
    """Accepts requests, batches them at the denoising step and answers every one exactly once.

    acquire: ``acquire(model)`` blocks on the device thread until the model is loaded and raises
        ``ServingError``. It is called with no rows in memory, so it may evict every other model.
    on_fatal: called once, from a thread of ours, when the device is lost, or its thread died or hangs;
        by then every caller has been answered.

    A hang is declared when a device call has run ``policy.hang_after`` seconds and nobody waits for its
    rows any more, or when it has run ``policy.hang_limit``: a deadline is the caller's choice, so a short
    one alone must not end the process, nor a long one keep it. Whatever the device does, nobody waits
    longer than his own deadline and a fraction of a second.
    """

    def __init__(
        self,
        acquire: Callable[[str], Pipeline[Any]],
        policy: BatchPolicy,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_fatal: Callable[[str], None] | None = None,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._on_fatal = on_fatal
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # the device thread waits here
        self._idle = threading.Condition(self._lock)  # drain waits here
        self._ledger = Ledger(policy, clock, self._lock)
        self._service = Service(acquire, self._ledger)
        self._chores: deque[tuple[Callable[[], Any], Future[Any]]] = deque()  # of the device, with no rows
        self._draining = False
        self._closed = threading.Event()
        self._fatal: str | None = None
        self._device = threading.Thread(target=self._run, name="device", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._device.start()
        self._watchdog.start()

    def submit(
        self, request: InferenceRequest, on_progress: OnProgress | None = None
    ) -> Future[InferenceResult]:
        """The future fails with ``ServingError``; cancelling it cancels the job.

        ``on_progress`` is called on the device thread after every step of the job: it must be quick.
        Raises ``CapacityError`` (queue_full, shutting_down, not_ready) at once, and ``ValueError`` when
        a live job has the same id.
        """
        future: Future[InferenceResult] = Future()
        with self._lock:
            self._check_open()
            job = self._ledger.enter(request, future, on_progress)
            self._work.notify()
        future.add_done_callback(partial(self._abandon, job))
        return future

    def admit(self) -> None:
        """Raises what ``submit`` would raise now for the smallest request: for refusing before its cost."""
        with self._lock:
            self._check_open()
            self._ledger.scheduler.check_room(0)

    def cancel(self, request_id: str) -> bool:
        """Whether the job was live. It never runs, or leaves before the next step."""
        with self._lock:
            job = self._ledger.scheduler.get(request_id)
            if job is not None:
                self._cancel(job)
        self._deliver()
        return job is not None

    def progress(self, request_id: str) -> Progress | None:
        """Where a live job stands."""
        with self._lock:
            scheduler = self._ledger.scheduler
            job = scheduler.get(request_id)
            return None if job is None else progress_of(job, scheduler.ahead(job))

    def warm(self, model: str) -> Future[None]:
        """Load a model before anyone asks for it, as soon as no rows are in memory."""
        return self.between(self._service.load, model)

    def between(self, chore: Callable[..., Value], *arguments: object) -> Future[Value]:
        """Call it on the device thread as soon as no rows are in memory: it may throw any model out."""
        future: Future[Value] = Future()
        with self._lock:
            self._check_open()
            self._chores.append((partial(chore, *arguments), future))
            self._work.notify()
        return future

    def stats(self) -> MuxStats:
        with self._lock:
            ledger = self._ledger
            return MuxStats(
                accepted=ledger.scheduler.accepted,
                jobs=ledger.scheduler.counts(),
                batch_sizes=dict(ledger.batch_sizes),
                batch_stops=dict(ledger.batch_stops),
                stage_seconds=dict(ledger.stage_seconds),
                retry_after=ledger.scheduler.retry_after(),
                draining=self._draining,
                fatal=self._fatal,
            )

    def drain(self, timeout: float) -> bool:
        """Refuse new work and wait for what was accepted; whether all of it was answered in time.

        What is left after ``timeout`` seconds is answered ``shutting_down``.
        """
        with self._lock:
            self._draining = True
            finished = self._idle.wait_for(lambda: not self._ledger.unanswered, timeout)
            self._ledger.settle_all(_shutting_down())
        self._deliver()
        return finished

    def close(self) -> None:
        """Answer whoever still waits and stop the threads. A device call that hangs is left behind."""
        self.drain(0)
        self._closed.set()
        with self._lock:
            self._work.notify()
        self._drop_chores(_shutting_down())
        for thread in (self._device, self._watchdog):
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(timeout=1.0)

    def __enter__(self) -> "BatchMux":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._fatal is not None:
            raise CapacityError("not_ready", "the worker is restarting", retry_after=_RESTART_SECONDS)
        if self._draining:
            raise _shutting_down()

    def _cancel(self, job: Job) -> None:
        self._ledger.settle(job, JobState.CANCELLED, RequestError("cancelled", "the request was cancelled"))

    def _abandon(self, job: Job, future: Future[InferenceResult]) -> None:
        """Every future's callback: one that its caller cancelled cancels the job."""
        if future.cancelled():
            with self._lock:
                self._cancel(job)
            self._deliver()

    def _deliver(self) -> None:
        delivered = self._ledger.deliver()
        with self._lock:
            self._ledger.unanswered -= delivered
            if not self._ledger.unanswered:
                self._idle.notify_all()

    # The device thread.

    def _run(self) -> None:
        try:
            while self._run_task():
                pass
        except DeviceLost as error:
            log.critical("the device is lost", exc_info=error)
            self._fail(error.message)
        except BaseException as error:  # the watchdog finds the thread dead and answers everyone
            log.critical("the device thread died", exc_info=error)

    def _run_task(self) -> bool:
        """In a frame of its own, so that an idle thread holds on to no request."""
        task = self._next_task()
        if task is None:
            return False
        task()
        self._deliver()
        return True

    def _next_task(self) -> Callable[[], None] | None:
        """Wait for something to do; None at the end."""
        with self._lock:
            while not self._closed.is_set() and self._fatal is None:
                self._ledger.settle_due()
                if self._ledger.undelivered:
                    return self._deliver
                if self._chores and not self._ledger.scheduler.running:
                    return partial(self._do, *self._chores.popleft())
                plan = self._ledger.scheduler.plan(self._clock(), admit=not self._chores)
                if not isinstance(plan, Rest):
                    return partial(self._service.serve, plan)
                self._work.wait(None if plan.until == float("inf") else max(plan.until - self._clock(), 0.0))
        return None

    def _do(self, chore: Callable[[], Value], future: Future[Value]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        self._service.let_go()
        try:
            value = chore()
        except BaseException as error:
            future.set_exception(error)
            if isinstance(error, DeviceLost) or not isinstance(error, ServingError):
                raise
        else:
            future.set_result(value)

    # The watchdog thread.

    def _watch(self) -> None:
        while not self._closed.wait(_WATCH_SECONDS):
            with self._lock:
                self._ledger.settle_due()
                fault = self._fault()
            self._deliver()
            if fault is not None:
                self._fail(fault)

    def _fault(self) -> str | None:
        if not self._device.is_alive():
            return "the device thread died; the worker is restarting"
        call, now = self._service.call, self._clock()
        if call and call.hangs(self._policy, now):
            return f"the device hangs in {call.stage}; the worker is restarting"
        return None

    def _fail(self, reason: str) -> None:
        """Answer everyone, refuse newcomers and report, once."""
        with self._lock:
            if self._fatal is not None or self._closed.is_set():
                return
            self._fatal = reason
            self._ledger.settle_all(DeviceLost(reason))
            self._work.notify()
        self._deliver()
        self._drop_chores(DeviceLost(reason))
        if self._on_fatal is not None:
            try:
                self._on_fatal(reason)
            except Exception:
                log.exception("on_fatal failed")

    def _drop_chores(self, error: ServingError) -> None:
        while True:
            try:
                future = self._chores.popleft()[1]
            except IndexError:
                return
            if future.set_running_or_notify_cancel():
                future.set_exception(error)


def _shutting_down() -> CapacityError:
    message = "the worker is shutting down; try again shortly"
    return CapacityError("shutting_down", message, retry_after=_RESTART_SECONDS)
