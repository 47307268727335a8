"""``Service``: carries out the scheduler's ticks on the pipelines: acquire, prepare, step, decode, answer.

Runs on the device thread and knows none; every device call is made with the lock released.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from batching import execution
from batching.isolation import isolate
from batching.job import Job, JobState
from batching.ledger import Ledger, Ticket
from batching.policy import BatchPolicy
from batching.previews import due, preview_of
from batching.scheduler import Tick
from core.errors import DeviceLost, ExecutionError, ServingError
from core.pipeline import Pipeline, RowState
from core.request import Image
from core.result import InferenceResult, Progress

log = logging.getLogger(__name__)
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Call:
    """A device call that has not returned."""

    stage: str
    started: float
    jobs: Sequence[Job]

    def hangs(self, policy: BatchPolicy, now: float) -> bool:
        """``BatchPolicy`` says when."""
        seconds = now - self.started
        return seconds > policy.hang_limit or (
            seconds > policy.hang_after and not any(job.live for job in self.jobs)
        )


class Service:
    """``call`` is the device call under way, for whoever watches; loading a model is none."""

    def __init__(self, acquire: Callable[[str], Pipeline[Any]], ledger: Ledger) -> None:
        self.call: Call | None = None
        self._acquire = acquire
        self._ledger = ledger
        self._clock = ledger.clock
        self._pipeline: Pipeline[Any] | None = None
        self._model: str | None = None  # the one acquired last

    def load(self, model: str) -> None:
        """Only with no rows in memory. Raises ``ServingError``."""
        started = self._clock()
        self._pipeline = None
        try:
            self._pipeline = self._acquire(model)
        except ServingError:
            raise
        except Exception as error:
            log.exception("model %s could not be loaded", model)
            message = "the model could not be loaded; the fault is in the log"
            raise ExecutionError("pipeline_error", message) from error
        finally:
            with self._ledger.lock:
                seconds = self._clock() - started
                self._ledger.stage_seconds["acquire"] += seconds
                if model != self._model:  # having the same one again says nothing of what a switch costs
                    self._ledger.scheduler.switched(seconds)
            self._model = model

    def let_go(self) -> None:
        """Hold on to no model, so that one which is thrown out is gone. Only with no rows in memory."""
        self._pipeline = None

    def serve(self, tick: Tick) -> None:
        """Raises ``DeviceLost``; every other fault answers the rows it concerns."""
        ledger = self._ledger
        if tick.first:
            try:
                self.load(tick.key.model)
            except DeviceLost:
                raise
            except ServingError as error:
                with ledger.lock:
                    ledger.settle_all(error, tick.key.model)
                return
        assert self._pipeline is not None, "rows are in memory, so their pipeline is"
        with ledger.lock:
            tickets = [ledger.tickets[job.id] for job in tick.rows if job.live]
        if tick.admitted:
            self._prepare(self._pipeline, tick, [ticket for ticket in tickets if ticket.state is None])
        self._step(self._pipeline, tick, [ticket for ticket in tickets if ticket.state is not None])
        finished = [ticket for ticket in tickets if ticket.job.remaining == 0]
        if finished:
            self._decode(self._pipeline, tick, finished)
        with ledger.lock:
            ledger.batch_stops[tick.stop] += 1
            ledger.scheduler.ticked(tick, self._clock())

    def _prepare(self, pipeline: Pipeline[Any], tick: Tick, tickets: Sequence[Ticket]) -> None:
        def run(group: Sequence[Ticket]) -> Sequence[RowState]:
            return execution.prepare(pipeline, [ticket.job.request for ticket in group])

        states = self._isolated("prepare", tick, tickets, run)
        with self._ledger.lock:
            now = self._clock()
            for ticket, state in states:
                ticket.state, ticket.prepared_at = state, now
                self._ledger.scheduler.prepared(ticket.job, state.remaining)

    def _step(self, pipeline: Pipeline[Any], tick: Tick, tickets: Sequence[Ticket]) -> None:
        def run(group: Sequence[Ticket]) -> Sequence[Exception | None]:
            started = self._clock()
            states = [ticket.state for ticket in group if ticket.state is not None]
            outcomes = execution.step(pipeline, states, [ticket.job.remaining - 1 for ticket in group])
            now = self._clock()
            with self._ledger.lock:
                self._ledger.batch_sizes[len(group)] += 1
                self._ledger.scheduler.stepped(tick, [ticket.job for ticket in group], now - started, now)
            return outcomes

        for ticket, _ in self._isolated("step", tick, tickets, run):
            if ticket.on_progress is not None and ticket.job.live:
                try:
                    ticket.on_progress(
                        replace(progress_of(ticket.job), preview=self._preview(pipeline, ticket))
                    )
                except Exception:
                    log.exception("a progress callback failed")

    def _preview(self, pipeline: Pipeline[Any], ticket: Ticket) -> Image | None:
        job, steps = ticket.job, ticket.job.request.steps_run
        wanted = ticket.shows and due(steps - job.remaining, steps, job.request.previews)
        if not wanted or ticket.state is None:
            return None
        started = self._clock()
        self.call = Call("preview", started, [job])
        try:
            preview = preview_of(pipeline, ticket.state)
        finally:
            self.call = None
            self._ledger.stage_seconds["preview"] += self._clock() - started
        ticket.shows = preview is not None
        return preview

    def _decode(self, pipeline: Pipeline[Any], tick: Tick, tickets: Sequence[Ticket]) -> None:
        def run(group: Sequence[Ticket]) -> Sequence[InferenceResult]:
            states = [ticket.state for ticket in group if ticket.state is not None]
            return execution.decode(pipeline, states, [ticket.job.request for ticket in group])

        if tickets[0].job.request.ask is None:
            self._answer(self._isolated("decode", tick, tickets, run))
            return
        # What was found is told row by row anyway, and masks may take seconds: whoever has left
        # meanwhile costs none, nobody waits for those behind him, and no sum of them is taken for a hang.
        for ticket in tickets:
            self._answer(self._isolated("decode", tick, [ticket], run))

    def _answer(self, results: Sequence[tuple[Ticket, InferenceResult]]) -> None:
        with self._ledger.lock:
            now = self._clock()
            for ticket, result in results:
                job = ticket.job
                timed = execution.with_timing(
                    result,
                    arrival=job.arrival,
                    prepared=ticket.prepared_at,
                    decoded=now,
                    batch_size=job.batch_size,
                    mates=tuple(sorted(job.mates - {job.id})),
                )
                self._ledger.settle(job, JobState.SUCCEEDED, timed)

    def _isolated(
        self,
        stage: str,
        tick: Tick,
        tickets: Sequence[Ticket],
        run: Callable[[Sequence[Ticket]], Sequence[Value | Exception]],
    ) -> list[tuple[Ticket, Value]]:
        """Run a stage for the rows still live; a row that fails is answered, the others come back."""
        ledger = self._ledger

        def watched(group: Sequence[Ticket]) -> Sequence[Value | Exception]:
            started = self._clock()
            self.call = Call(stage, started, [ticket.job for ticket in group])
            try:
                return run(group)
            except ServingError:
                raise
            except Exception:
                log.exception("%s failed for a batch of %d", stage, len(group))
                raise
            finally:
                self.call = None
                ledger.stage_seconds[stage] += self._clock() - started

        def remember(size: int) -> None:
            log.warning("%s ran out of device memory with %d rows; halving", stage, size)
            with ledger.lock:
                ledger.scheduler.limit(tick, size // 2, self._clock())

        live = [ticket for ticket in tickets if ticket.job.live]
        if not live:
            return []
        outcomes = list(zip(live, isolate(live, watched, remember), strict=True))
        failed = [(ticket, error) for ticket, error in outcomes if isinstance(error, Exception)]
        if failed:
            with ledger.lock:
                for ticket, error in failed:
                    ledger.settle(ticket.job, JobState.FAILED, execution.as_answer(error))
        return [(ticket, value) for ticket, value in outcomes if not isinstance(value, Exception)]


def progress_of(job: Job, position: int | None = None) -> Progress:
    steps = job.request.steps_run
    return Progress(state=str(job.state), step=steps - job.remaining, steps=steps, position=position)
