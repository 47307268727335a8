"""The pure scheduler: it accepts jobs, keeps the books and plans what the device does next.

It knows no threads, futures, pipelines or clocks; time is an argument.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from batching.job import Job, JobState
from batching.lane import Lane
from batching.policy import BatchPolicy
from batching.selection import Selection
from core.errors import CapacityError
from core.pipeline import BatchKey
from core.request import InferenceRequest

__all__ = ["BatchPolicy", "Rest", "Scheduler", "Tick"]

_LANES_REMEMBERED = 256
_LONGEST_RETRY_AFTER = 120.0
_UNKNOWN_PACE = 1.0  # seconds a job is taken to need while none has finished


@dataclass(frozen=True, slots=True)
class Tick:
    """What the device does next: prepare ``admitted``, then step ``rows``, which include them, once.

    first: no rows are in memory yet, so the model may have to be brought in.
    stop: why it takes no more rows: size | tokens | memory, or "gain" when a wider batch would be no
        faster, or "drained" when nobody else waits.
    """

    lane: Lane = field(repr=False)
    admitted: tuple[Job, ...]
    rows: tuple[Job, ...]
    started: float
    first: bool
    stop: str = "drained"

    @property
    def key(self) -> BatchKey:
        return self.lane.key


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do before ``until``; ``inf`` is until something arrives."""

    until: float


class Scheduler:
    """Every accepted job is in exactly one state at any moment: ``counts()`` adds up to ``accepted``.

    The caller repeats: ``plan``; then for the tick's rows ``stepped`` and, as they end, ``finish``;
    then ``ticked``. Jobs may be submitted and finished (cancelled, expired) at any moment in between.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self.policy = policy
        self.accepted = 0
        self.queued = 0
        self.running = 0
        self._held_bytes = 0
        self._ended = dict.fromkeys((state for state in JobState if state.terminal), 0)
        self._jobs: dict[str, Job] = {}
        self._lanes: OrderedDict[BatchKey, Lane] = OrderedDict()  # what was learnt outlives the jobs
        self._busy: dict[BatchKey, Lane] = {}  # the lanes with live jobs
        self._selection = Selection(policy)
        self._next_deadline = math.inf  # no live job's is earlier
        self._busy_seconds = 0.0
        self._jobs_done = 0.0

    def get(self, job_id: str) -> Job | None:
        """A live job."""
        return self._jobs.get(job_id)

    @property
    def jobs(self) -> list[Job]:
        """The live ones, oldest first."""
        return list(self._jobs.values())

    def ahead(self, job: Job) -> int | None:
        """How many jobs were accepted before a queued one and wait too."""
        if job.state is not JobState.QUEUED:
            return None
        queued = (other for other in self._jobs.values() if other.state is JobState.QUEUED)
        return sum(other.sequence < job.sequence for other in queued)

    @property
    def seconds_per_job(self) -> float:
        """Device time a job has needed lately, batching included."""
        return self._busy_seconds / self._jobs_done if self._jobs_done else _UNKNOWN_PACE

    def counts(self) -> dict[JobState, int]:
        return {JobState.QUEUED: self.queued, JobState.RUNNING: self.running, **self._ended}

    def submit(self, request: InferenceRequest, now: float) -> Job:
        """Raises ``CapacityError`` ``queue_full``, or ``ValueError`` when a live job has this id."""
        if request.id in self._jobs:
            raise ValueError(f"a live job already has the id {request.id!r}")
        nbytes = request.nbytes
        self.check_room(nbytes)
        lane = self._lane(BatchKey.of(request, together=self.policy.join == "batch"))
        deadline = math.inf if request.timeout is None else now + request.timeout
        backlog = sum([lane.steps_left * lane.times.per_row for lane in self._busy.values()])
        self.accepted += 1
        job = Job(request, lane.key, self.accepted, now, deadline, nbytes, backlog)
        self._next_deadline = min(self._next_deadline, deadline)
        self._jobs[request.id] = job
        self._busy[lane.key] = lane
        self.queued += 1
        self._held_bytes += nbytes
        lane.add(job)
        return job

    def due(self, now: float) -> list[Job]:
        """Live jobs whose deadline has passed; the caller finishes them."""
        if now < self._next_deadline:
            return []
        self._next_deadline = min(
            (job.deadline for job in self._jobs.values() if job.deadline > now), default=math.inf
        )
        return [job for job in self._jobs.values() if job.deadline <= now]

    def plan(self, now: float, *, admit: bool = True) -> Tick | Rest:
        """What to do now. Nothing past its deadline may be live. Without ``admit``, prepared rows only."""
        choice = self._selection.next(list(self._busy.values()), self.running, now, admit=admit)
        if isinstance(choice, float):
            return Rest(choice)
        lane, rows = choice
        first = not self.running
        stop = lane.stop(len(rows), now)
        admitted = tuple(job for job in rows if job.state is JobState.QUEUED)
        for job in admitted:
            job.advance(JobState.RUNNING)
            lane.admit(job)
            self.queued -= 1
            self.running += 1
        return Tick(lane, admitted, tuple(rows), now, first, stop)

    def prepared(self, job: Job, steps: int) -> None:
        """The job turned out to need ``steps`` steps."""
        if job.live:
            self._busy[job.key].steps_left += steps - job.remaining
        job.remaining = steps

    def stepped(self, tick: Tick, rows: Sequence[Job], seconds: float, now: float) -> None:
        """``rows`` of the tick shared one step of ``seconds``."""
        live = sum(job.live for job in rows)
        ids = [job.id for job in rows]
        for job in rows:
            job.remaining -= 1
            job.batch_size = max(job.batch_size, len(rows))
            job.mates.update(ids)
        tick.lane.stepped(len(rows), live, seconds, now)

    def finish(self, job: Job, to: JobState) -> None:
        """A live job reaches a terminal state, whatever the reason."""
        queued = job.state is JobState.QUEUED
        job.advance(to)
        if queued:
            self.queued -= 1
        else:
            self.running -= 1
        self._held_bytes -= job.nbytes
        self._ended[to] += 1
        del self._jobs[job.id]
        lane = self._busy[job.key]
        lane.remove(job)
        if not lane.jobs:
            del self._busy[job.key]

    def ticked(self, tick: Tick, now: float) -> None:
        """The tick is over: its answers are on their way."""
        answered = sum(not job.live for job in tick.rows)
        self._busy_seconds = self._busy_seconds * 0.99 + now - tick.started
        self._jobs_done = self._jobs_done * 0.99 + answered
        if answered:
            tick.lane.returns.answered(answered, now)

    def limit(self, tick: Tick, rows: int, now: float) -> None:
        """More than ``rows`` rows of the tick's key ran out of memory; remembered for a while."""
        tick.lane.limit(rows, now + self.policy.limit_seconds)

    def switched(self, seconds: float) -> None:
        """What it took to have the model ready; a slow switch is made less often."""
        self._selection.switch_seconds = seconds

    def retry_after(self) -> float:
        """Seconds until what waits now will have run, 1 to 120."""
        return min(max(self.queued * self.seconds_per_job, 1.0), _LONGEST_RETRY_AFTER)

    def check_room(self, nbytes: int) -> None:
        """Raises ``CapacityError`` ``queue_full`` when a request of ``nbytes`` would be refused now."""
        if not self._jobs:
            return
        if self.queued >= self.policy.max_queue:
            limit = f"{self.queued} requests wait, the limit is {self.policy.max_queue}"
        elif self._held_bytes + nbytes > self.policy.max_queue_bytes:
            limit = f"requests hold {self._held_bytes >> 20} of {self.policy.max_queue_bytes >> 20} MiB"
        else:
            return
        after = self.retry_after()
        raise CapacityError("queue_full", f"{limit}; try again in {after:.0f} s", retry_after=after)

    def _lane(self, key: BatchKey) -> Lane:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key, self.policy)
            if len(self._lanes) > _LANES_REMEMBERED:
                idle = next(
                    (known for known in self._lanes if known not in self._busy and known != key), None
                )
                if idle is not None:
                    del self._lanes[idle]
        else:
            self._lanes.move_to_end(key)
        return lane
