"""``JobRecord``: one asynchronous job as it is kept, and the table of states it may pass through.

It refuses to know what a body or a result means: that is its dialect's affair.
"""

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        return not TRANSITIONS[self]


# As in the mux, except that a run may be taken back (a drain, a full queue, the end of the process), and
# that nothing fails unless it was tried.
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.EXPIRED}),
    JobState.RUNNING: frozenset(
        {JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED}
    ),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.EXPIRED: frozenset(),
}


# What its caller may have queued once more. That is a new life of the job, not a way out of its end.
RETRYABLE = frozenset({JobState.FAILED, JobState.EXPIRED})


def sources_of(state: JobState) -> tuple[JobState, ...]:
    """The states from which ``state`` can be reached."""
    return tuple(start for start, ends in TRANSITIONS.items() if state in ends)


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """What a dialect hands over; all of it is checked before.

    owner:    names the key of the caller without telling it (a hash); nobody else ever sees the job.
    dialect:  who will carry it out.
    body:     what the dialect needs for that, in its own form.
    prefix:   goes before the id, e.g. ``sync-``.
    idempotency_key: of the caller's choice; with the same body it names the same job.
    ttl:      seconds from now to the last useful moment of an answer; None is no limit.
    execution_timeout: seconds of one run.
    keep:     seconds for which the finished job can be asked for; None is the store's default.
    webhook:  a URL that is told of the end.
    """

    owner: str
    dialect: str
    body: bytes = field(repr=False)
    prefix: str = ""
    idempotency_key: str | None = None
    ttl: float | None = None
    execution_timeout: float | None = None
    keep: float | None = None
    webhook: str | None = field(default=None, repr=False)

    @property
    def body_hash(self) -> bytes:
        """Equal for equal work: the same bytes sent to another dialect are another job."""
        return hashlib.sha256(self.dialect.encode() + b"\0" + self.body).digest()


@dataclass(frozen=True, kw_only=True, slots=True)
class JobOutcome:
    """What a job that succeeded answers, as its dialect rendered it."""

    data: bytes = field(repr=False)
    media_type: str = "application/json"


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRecord:
    """Times are seconds of the wall clock: a job outlives the process that accepted it.

    attempts: runs that were begun and not taken back for reasons that have nothing to do with the job.
    lease:    runs that were ever begun; only the latest of them may end the job.
    deadline: when it expires unless it is done; None is never.
    expires:  when a finished job is forgotten.
    body:     while it runs, for who carries it out; empty otherwise.
    """

    id: str
    owner: str
    dialect: str
    state: JobState
    attempts: int
    lease: int
    created: float
    started: float | None = None
    finished: float | None = None
    deadline: float | None = None
    expires: float | None = None
    execution_timeout: float | None = None
    webhook: str | None = field(default=None, repr=False)
    error_code: str | None = None
    error_message: str | None = None
    body: bytes = field(default=b"", repr=False)
    outcome: JobOutcome | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class JobPage:
    """``after`` asks for the next page; None at the end."""

    jobs: tuple[JobRecord, ...]
    after: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreLimits:
    """max_live, max_live_bytes: jobs that wait or run, and their bodies, before new ones are refused.

    keep_seconds, keep_bytes: finished jobs are forgotten, the oldest first, beyond that age or size.
    min_free_bytes: that the disk must have left for new jobs, so that the ends of accepted ones always fit.
    gone_seconds: for which a forgotten job is answered with ``expired`` instead of ``job_not_found``.
    """

    max_live: int = 1000
    max_live_bytes: int = 2 * 2**30
    keep_seconds: float = 24 * 3600.0
    keep_bytes: int = 2 * 2**30
    min_free_bytes: int = 256 * 2**20
    gone_seconds: float = 24 * 3600.0
    max_attempts: int = 3
