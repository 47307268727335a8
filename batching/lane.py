"""``Lane``: the live jobs of one ``BatchKey``, in the order in which they should run."""

from bisect import bisect_left, insort
from collections import OrderedDict

from batching.job import Job
from batching.policy import BatchPolicy
from batching.timing import Returns, StepTimes
from core.pipeline import BatchKey

Entry = tuple[float, int, Job]  # rank, sequence (unique, so that jobs are never compared), job


class Lane:
    """Waiting jobs are kept sorted by rank; running ones are few and ranked when asked for.

    A job's rank is the time from which it gives way to nobody who comes later:
    ``arrival + min(stretch * work, backlog + overtaking * work)``, lowest first. Short jobs rank before
    long ones, yet none much later than a queue in order of arrival would have come to it. The rank of
    a waiting job never changes, so the order ages without being touched.

    unserved_since: when the lane last ran a step, or became busy after that.
    steps_left:     steps that its live jobs still need, added up.
    """

    def __init__(self, key: BatchKey, policy: BatchPolicy) -> None:
        self.key = key
        self.times = StepTimes()
        self.returns = Returns(policy.max_wait)
        self.unserved_since = 0.0
        self.steps_left = 0
        self.jobs: OrderedDict[int, Job] = OrderedDict()  # every live one by sequence, oldest first
        self.running: dict[int, Job] = {}
        self._policy = policy
        self._waiting: list[Entry] = []
        self._ranks: dict[int, float] = {}  # of the waiting, to find them again
        self._most = self._cap = policy.max_batch_size
        self._cap_until = 0.0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def oldest(self) -> Job:
        return next(iter(self.jobs.values()))

    @property
    def head(self) -> float:
        """The lowest rank in the lane."""
        if not self.running:
            return self._waiting[0][0]
        rank = min([self._rank(job) for job in self.running.values()])
        return min(rank, self._waiting[0][0]) if self._waiting else rank

    def add(self, job: Job) -> None:
        if not self.jobs:
            self.unserved_since = job.arrival
            # Rows of one key are of one size, so any of them tells how many tokens a row has.
            by_tokens = self._policy.max_batch_tokens // max(1, job.request.tokens)
            self._most = min(self._policy.max_batch_size, max(1, by_tokens))
        self.jobs[job.sequence] = job
        self.steps_left += job.remaining
        rank = self._ranks[job.sequence] = self._rank(job)
        insort(self._waiting, (rank, job.sequence, job))
        self.returns.arrived(job.arrival)

    def admit(self, job: Job) -> None:
        """The job stops waiting: it is about to be prepared."""
        self._unqueue(job)
        self.running[job.sequence] = job

    def remove(self, job: Job) -> None:
        del self.jobs[job.sequence]
        self.steps_left -= job.remaining
        if self.running.pop(job.sequence, None) is None:
            self._unqueue(job)

    def stepped(self, rows: int, live: int, seconds: float, now: float) -> None:
        """``rows`` jobs shared a step; ``live`` of them are still in the lane."""
        self.times.observe(rows, seconds)
        self.steps_left -= live
        self.unserved_since = now

    def preview(self, admit: int, most: int) -> tuple[Job, int]:
        """The first job of ``ranked`` and how many there are."""
        if self.running:
            rows = self.ranked(admit, most)
            return rows[0], len(rows)
        return self._waiting[0][2], min(admit, most, len(self._waiting))

    def ranked(self, admit: int, most: int) -> list[Job]:
        """The first ``most`` jobs in order: running ones, and up to ``admit`` waiting ones."""
        entries = self._waiting[: min(admit, most)]
        if self.running:
            entries += [(self._rank(job), sequence, job) for sequence, job in self.running.items()]
            entries.sort()
        return [job for _, _, job in entries[:most]]

    def most_rows(self, now: float) -> int:
        """How many rows one step may take: by count, by tokens, and by what memory held lately."""
        return min(self._most, self._cap) if now < self._cap_until else self._most

    def stop(self, rows: int, now: float) -> str:
        """Why a batch of ``rows`` takes no more; see ``Tick.stop``."""
        if rows >= len(self.jobs):
            return "drained"
        if rows < self.most_rows(now):
            return "gain"
        if rows == self._policy.max_batch_size:
            return "size"
        return "tokens" if rows == self._most else "memory"

    def limit(self, rows: int, until: float) -> None:
        self._cap, self._cap_until = max(1, rows), until

    def waste(self, rows: int) -> float:
        """Device seconds that a row's step costs more in a batch of ``rows`` than in the best batch seen."""
        return self.times.estimate(rows) / rows - self.times.per_row

    def _rank(self, job: Job) -> float:
        if self._policy.order == "fifo":
            return job.arrival
        work = job.remaining * self.times.estimate(1)
        return job.arrival + min(self._policy.stretch * work, job.backlog + self._policy.overtaking * work)

    def _unqueue(self, job: Job) -> None:
        at = bisect_left(self._waiting, (self._ranks.pop(job.sequence), job.sequence))
        del self._waiting[at]
