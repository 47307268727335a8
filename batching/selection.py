"""The choice of the device's next tick among the lanes that have work. Keeps no books."""

import math
from collections.abc import Iterable, Sequence

from batching.job import Job
from batching.lane import Lane
from batching.policy import BatchPolicy

Choice = tuple[Lane, list[Job]]


class Selection:
    """Which lane is served, with which rows.

    The lane whose first job ranks lowest is served, in as wide a batch as pays, unless it would pay to
    let its batch gather while another lane runs. Two guards stand over that, both counted in batch
    times: a lane that others hold up goes next and keeps the device until its oldest job is done, and a
    model that others hold up stops admission for the model in memory.

    model: the one whose rows are or were last in memory. Rows of two models are never in memory
        together, so that one can be evicted for the other.
    switch_seconds: what it took to bring in a model the last time.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        self.model: str | None = None
        self.switch_seconds = 0.0
        self._protected: Job | None = None

    def next(self, lanes: Sequence[Lane], prepared: int, now: float, *, admit: bool) -> Choice | float:
        """The lane and rows to step, or the time before which there is nothing to do."""
        room = max(self._policy.max_prepared, self._policy.max_batch_size) - prepared
        allowed = room if admit else 0
        if self._policy.join == "batch":
            return self._together(lanes, allowed, now)
        lanes, allowed = self._one_model(lanes, prepared, allowed, now)
        lanes = [lane for lane in lanes if lane.running or allowed > 0]
        return self._between_steps(lanes, allowed, now)

    def _between_steps(self, lanes: list[Lane], allowed: int, now: float) -> Choice | float:
        wake = math.inf
        while lanes:
            lane = min(lanes, key=lambda lane: self._turn(lane, allowed, now))
            rows = self._rows(lane, allowed, now)
            held_up = self._held_up(lanes, lane, rows, now)
            if held_up is not None:
                lane, rows = held_up, self._rows(held_up, allowed, now, first=self._protected)
            until = self._linger(lane, rows, now)
            if until <= now:
                return lane, rows
            wake = min(wake, until)
            lanes.remove(lane)
        return wake

    def _turn(self, lane: Lane, allowed: int, now: float) -> float:
        """The lower the sooner: the first job's rank, put off while its batch would be a wasteful one."""
        if self._policy.order == "fifo":
            return lane.head
        first, rows = lane.preview(allowed, lane.most_rows(now))
        waste = lane.waste(lane.times.width(rows, self._policy.min_gain))
        return lane.head + self._policy.thrift * waste * first.remaining

    def _rows(self, lane: Lane, allowed: int, now: float, first: Job | None = None) -> list[Job]:
        rows = lane.ranked(allowed, lane.most_rows(now))
        if first is not None and (first.sequence in lane.running or allowed > 0):
            rows = [first, *(job for job in rows if job is not first)][: max(len(rows), 1)]
        return rows[: lane.times.width(len(rows), self._policy.min_gain)]

    def _held_up(self, lanes: Sequence[Lane], best: Lane, rows: Sequence[Job], now: float) -> Lane | None:
        if self._policy.order == "fifo" or len(lanes) == 1:
            return None
        if self._protected is not None and not self._protected.live:
            self._protected = None  # its request would be kept in memory
        if self._protected is not None:
            for lane in lanes:
                if self._protected.sequence in lane.jobs:
                    return lane
        lane = min((lane for lane in lanes if lane is not best), key=lambda lane: lane.unserved_since)
        if not self._overdue([lane], best, rows, now):
            return None
        self._protected = lane.oldest
        return lane

    def _overdue(self, lanes: Iterable[Lane], best: Lane, rows: Sequence[Job], now: float) -> bool:
        """Whether one of ``lanes`` would be held up for too long by another step of ``best``."""
        step = best.times.estimate(len(rows))
        batch = step * max((job.request.steps_run for job in rows), default=0)
        since = min(lane.unserved_since for lane in lanes)
        return now + step - since > self._policy.patience * batch

    def _one_model(
        self, lanes: Sequence[Lane], prepared: int, allowed: int, now: float
    ) -> tuple[Sequence[Lane], int]:
        """The lanes of the model whose turn it is, and how many rows may be admitted."""
        others = [lane for lane in lanes if lane.key.model != self.model]
        if not others:
            return lanes, allowed
        own = [lane for lane in lanes if lane.key.model == self.model]
        if own:
            best = min(own, key=lambda lane: lane.head)
            rows = best.ranked(allowed, best.most_rows(now))
            waited = now - min(lane.unserved_since for lane in others)
            patient = waited <= self._policy.patience * self.switch_seconds
            if patient or not self._overdue(others, best, rows, now):
                return own, allowed
            if prepared:
                return own, 0
        if not prepared and allowed > 0:
            self.model = min(others, key=lambda lane: lane.unserved_since).key.model
        return [lane for lane in lanes if lane.key.model == self.model], allowed

    def _linger(self, lane: Lane, rows: Sequence[Job], now: float) -> float:
        """Until when a one-step batch that is not full should wait for callers about to return."""
        if lane.running or len(rows) != lane.waiting or rows[0].request.steps_run != 1:
            return now
        if len(rows) >= lane.times.width(lane.most_rows(now), self._policy.min_gain):
            return now
        until = lane.returns.worth_waiting_until(len(rows), lane.times.saved(len(rows)), now)
        return min(until, lane.oldest.arrival + self._policy.max_wait)

    def _together(self, lanes: Sequence[Lane], allowed: int, now: float) -> Choice | float:
        """Window batching: nothing joins what runs; a batch starts when full or when its window closes."""
        for lane in lanes:
            if lane.running:
                return lane, list(lane.running.values())[: lane.most_rows(now)]
        if allowed <= 0:
            return math.inf
        closes = {lane: lane.oldest.arrival + self._policy.max_wait for lane in lanes}
        ready = [lane for lane in lanes if closes[lane] <= now or lane.waiting >= lane.most_rows(now)]
        if not ready:
            return min(closes.values(), default=math.inf)
        lane = min(ready, key=lambda lane: lane.head)
        self.model = lane.key.model
        return lane, lane.ranked(allowed, lane.most_rows(now))
