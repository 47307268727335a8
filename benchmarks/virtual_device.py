"""A device in virtual time under the real scheduler: nothing sleeps, nothing is computed."""

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from batching.job import Job, JobState
from batching.scheduler import Rest, Scheduler
from core.errors import CapacityError
from core.request import InferenceRequest

Arrival = tuple[float, InferenceRequest]


class Costs(Protocol):
    """Seconds of each stage for these rows together."""

    def prepare(self, rows: Sequence[InferenceRequest]) -> float: ...

    def step(self, rows: Sequence[InferenceRequest]) -> float: ...

    def decode(self, rows: Sequence[InferenceRequest]) -> float: ...


def simulate(
    scheduler: Scheduler,
    arrivals: Iterable[Arrival],
    costs: Costs,
    answered: Callable[[Job, float], Arrival | None],
    refused: Callable[[InferenceRequest], None] | None = None,
) -> float:
    """Run until nothing is left; the time at which that was.

    ``answered(job, now)`` sees every finished job and may return the next arrival of its caller;
    ``refused`` sees what the queue had no room for, which is a fault when it is None.
    """
    coming = [(time, number, request) for number, (time, request) in enumerate(arrivals)]
    heapq.heapify(coming)
    numbers = len(coming)
    now = ended = 0.0

    def submit_until(time: float) -> None:
        while coming and coming[0][0] <= time:
            at, _, request = heapq.heappop(coming)
            try:
                scheduler.submit(request, at)
            except CapacityError:
                if refused is None:
                    raise
                refused(request)

    while True:
        submit_until(now)
        tick = scheduler.plan(now)
        if isinstance(tick, Rest):
            now = min(tick.until, coming[0][0] if coming else math.inf)
            if now == math.inf:
                return ended
            continue
        if tick.admitted:
            now += costs.prepare([job.request for job in tick.admitted])
        seconds = costs.step([job.request for job in tick.rows])
        now += seconds
        submit_until(now)
        scheduler.stepped(tick, tick.rows, seconds, now)
        done = [job for job in tick.rows if job.remaining == 0]
        if done:
            now += costs.decode([job.request for job in done])
            submit_until(now)
        for job in done:
            scheduler.finish(job, JobState.SUCCEEDED)
        scheduler.ticked(tick, now)
        ended = now
        for job in done:
            if (following := answered(job, now)) is not None:
                heapq.heappush(coming, (following[0], numbers, following[1]))
                numbers += 1
