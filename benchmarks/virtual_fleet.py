"""A fleet in virtual time: the real scheduler in each worker, the real balancer in front of them.

What is modelled of the gateway are its rules: requests wait there while every worker has its fill; one that
no worker has taken is tried elsewhere within the retry budget; one that was under way at a worker which dies
is answered with an error, for a second try might execute it twice. The network takes no time.
"""

import heapq
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from batching.job import JobState
from batching.scheduler import BatchPolicy, Rest, Scheduler, Tick
from benchmarks.fleet_traffic import MODEL, Arrival
from benchmarks.virtual_device import Costs
from core.request import InferenceRequest
from gateway.balancer import Balancer, Outcome

_PROBE_SECONDS: Final = 2.0
_MOST_TRIES: Final = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """Seconds. A worker lives for ``lifetime`` on average, refuses connections for ``boot`` after its death
    and then takes requests without running them for ``load``: its cold start. ``inf`` is no deaths."""

    lifetime: float = 1800.0
    boot: float = 10.0
    load: float = 20.0


@dataclass(frozen=True, slots=True)
class Account:
    """What a run came to. Latencies are of answered requests, in seconds, from arrival to answer.

    failed: answered with an error. waiting: neither, at the end. present: requests in the system, the mean
    over the time of arrivals. busy, paid: device-seconds in that time. pick_seconds: real ones of this
    machine, in the balancer, for all picks together.
    """

    arrived: int
    answered: int
    failed: int
    waiting: int
    latencies: tuple[float, ...] = field(repr=False)
    present: float
    busy: float
    paid: float
    deaths: int
    picks: int
    pick_seconds: float = field(compare=False)


@dataclass(slots=True, eq=False)
class _Call:
    request: InferenceRequest
    arrived: float
    tried: set[str] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class _Worker:
    """``life``: how often it has died; what was planned in an earlier life does not happen."""

    name: str
    scheduler: Scheduler
    reachable: bool = True
    warm: bool = True
    life: int = 0
    computing_since: float | None = None
    busy: float = 0.0


class VirtualFleet:
    def __init__(
        self,
        workers: int,
        balancer: Balancer,
        costs: Costs,
        *,
        policy: BatchPolicy | None = None,
        faults: Faults | None = None,
        max_waiting: int = 256,
        seed: int = 0,
    ) -> None:
        self._policy = policy or BatchPolicy()
        self._faults = faults or Faults()
        self._balancer = balancer
        self._costs = costs
        self._max_waiting = max_waiting
        self._rng = random.Random(f"faults {seed}")
        self._workers = {str(n): _Worker(str(n), Scheduler(self._policy)) for n in range(workers)}
        for name in self._workers:
            balancer.add(name)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._planned = 0
        self._now = 0.0
        self._until = 0.0
        self._calls: dict[str, _Call] = {}  # given to a worker
        self._waiting: deque[_Call] = deque()  # for room
        self._latencies: list[float] = []
        self._arrived = self._failed = self._deaths = self._picks = 0
        self._pick_seconds = 0.0
        self._present = 0
        self._presence = 0.0  # request-seconds
        self._counted_at = 0.0

    def run(self, arrivals: Iterable[Arrival], until: float, *, finish: bool = True) -> Account:
        """All arrivals, which end at ``until``; then, with ``finish``, on until everything is answered."""
        self._until = until
        for worker in self._workers.values():
            self._plan_death(worker)
        self._probe()
        coming = iter(arrivals)
        following = next(coming, None)
        while following is not None or (self._events[0][0] < until or (finish and self._present)):
            if following is not None and following[0] <= self._events[0][0]:
                self._now = following[0]
                self._arrive(following[1])
                following = next(coming, None)
                continue
            self._now, _, happen = heapq.heappop(self._events)
            happen()
        self._now = max(self._now, until)
        for worker in self._workers.values():
            self._stop_clock(worker)
        self._count(0)
        return Account(
            arrived=self._arrived,
            answered=len(self._latencies),
            failed=self._failed,
            waiting=len(self._calls) + len(self._waiting),
            latencies=tuple(self._latencies),
            present=self._presence / until,
            busy=sum(worker.busy for worker in self._workers.values()),
            paid=until * len(self._workers),
            deaths=self._deaths,
            picks=self._picks,
            pick_seconds=self._pick_seconds,
        )

    def _in(self, seconds: float, happen: Callable[[], None]) -> None:
        self._planned += 1
        heapq.heappush(self._events, (self._now + seconds, self._planned, happen))

    # The gateway's side.

    def _arrive(self, request: InferenceRequest) -> None:
        self._arrived += 1
        self._count(1)
        self._balancer.earn()
        self._send(_Call(request, self._now))

    def _send(self, call: _Call) -> bool:
        """False: it waits, for every worker has its fill."""
        while True:
            began = time.perf_counter()
            pick = self._balancer.pick(self._now, model=MODEL, tried=call.tried)
            self._pick_seconds += time.perf_counter() - began
            self._picks += 1
            if pick.full and len(self._waiting) < self._max_waiting:
                self._waiting.append(call)
                return False
            if pick.name is None:
                self._fail()
                return True
            worker = self._workers[pick.name]
            self._balancer.begin(worker.name, self._now, model=MODEL)
            if worker.reachable:
                self._calls[call.request.id] = call
                worker.scheduler.submit(call.request, self._now)
                self._compute(worker)
                return True
            self._balancer.end(worker.name, self._now, Outcome.BROKEN)
            call.tried.add(worker.name)
            if len(call.tried) >= _MOST_TRIES or not self._balancer.may_retry():
                self._fail()
                return True

    def _hand_out(self) -> None:
        """Room for those who wait, in the order in which they came."""
        for _ in range(len(self._waiting)):
            call = self._waiting.popleft()
            if not self._send(call):
                self._waiting.rotate(1)  # back to the head
                return

    def _probe(self) -> None:
        for worker in self._workers.values():
            if worker.reachable:
                jobs = worker.scheduler.queued + worker.scheduler.running
                loaded = (MODEL,) if worker.warm else ()
                self._balancer.probed(worker.name, self._now, Outcome.GOOD, loaded=loaded, waiting=jobs)
            else:
                self._balancer.probed(worker.name, self._now, Outcome.BROKEN)
        self._hand_out()
        self._in(_PROBE_SECONDS, self._probe)

    # The workers' side.

    def _compute(self, worker: _Worker) -> None:
        if worker.computing_since is not None or not worker.warm:
            return
        tick = worker.scheduler.plan(self._now)
        if isinstance(tick, Rest):
            if worker.scheduler.queued:
                self._in(tick.until - self._now, partial(self._wake, worker, worker.life))
            return
        worker.computing_since = self._now
        encoding = self._costs.prepare([job.request for job in tick.admitted]) if tick.admitted else 0.0
        seconds = self._costs.step([job.request for job in tick.rows])
        self._in(encoding + seconds, partial(self._stepped, worker, worker.life, tick, seconds))

    def _wake(self, worker: _Worker, life: int) -> None:
        if life == worker.life:
            self._compute(worker)

    def _stepped(self, worker: _Worker, life: int, tick: Tick, seconds: float) -> None:
        if life != worker.life:
            return
        worker.scheduler.stepped(tick, tick.rows, seconds, self._now)
        done = [job.request for job in tick.rows if job.remaining == 0]
        self._in(
            self._costs.decode(done) if done else 0.0,
            partial(self._ticked, worker, life, tick, done),
        )

    def _ticked(self, worker: _Worker, life: int, tick: Tick, done: list[InferenceRequest]) -> None:
        if life != worker.life:
            return
        self._stop_clock(worker)
        for job in tick.rows:
            if job.remaining == 0:
                worker.scheduler.finish(job, JobState.SUCCEEDED)
        worker.scheduler.ticked(tick, self._now)
        for request in done:
            call = self._calls.pop(request.id)
            self._latencies.append(self._now - call.arrived)
            self._count(-1)
            self._balancer.end(worker.name, self._now, Outcome.GOOD)
        if done:
            self._hand_out()
        self._compute(worker)

    def _plan_death(self, worker: _Worker) -> None:
        if self._faults.lifetime < math.inf:
            self._in(self._rng.expovariate(1 / self._faults.lifetime), partial(self._die, worker))

    def _die(self, worker: _Worker) -> None:
        self._deaths += 1
        self._stop_clock(worker)
        lost = worker.scheduler.jobs
        worker.life += 1
        worker.reachable = worker.warm = False
        worker.scheduler = Scheduler(self._policy)
        for job in lost:
            del self._calls[job.id]
            self._balancer.end(worker.name, self._now, Outcome.ERROR)
            self._fail()
        self._in(self._faults.boot, partial(self._boot, worker))

    def _boot(self, worker: _Worker) -> None:
        worker.reachable = True
        self._in(self._faults.load, partial(self._warm_up, worker))

    def _warm_up(self, worker: _Worker) -> None:
        worker.warm = True
        self._plan_death(worker)
        self._compute(worker)

    # The books.

    def _fail(self) -> None:
        self._failed += 1
        self._count(-1)

    def _count(self, change: int) -> None:
        """Requests in the system, integrated over the time of arrivals."""
        now = min(self._now, self._until)
        self._presence += self._present * (now - self._counted_at)
        self._counted_at = now
        self._present += change

    def _stop_clock(self, worker: _Worker) -> None:
        if worker.computing_since is not None:
            worker.busy += min(self._now, self._until) - min(worker.computing_since, self._until)
            worker.computing_since = None
