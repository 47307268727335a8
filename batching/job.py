"""``Job``: one request inside the mux, and the table of states it may pass through."""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from core.pipeline import BatchKey
from core.request import InferenceRequest


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


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    # FAILED straight from QUEUED: its model could not be loaded, or the worker ended around it.
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED}),
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.EXPIRED: frozenset(),
}


@dataclass(slots=True, eq=False)
class Job:
    """A request and where it stands.

    sequence:   order of acceptance, unique.
    arrival, deadline: seconds on the caller's clock; ``inf`` is no deadline.
    nbytes:     memory that its waiting costs.
    backlog:    seconds of work that was accepted and unfinished when it arrived.
    remaining:  calls of ``step`` still needed.
    batch_size: the most rows it has shared a step with, itself included.
    mates:      ids of all it has shared one with, and its own.
    """

    request: InferenceRequest
    key: BatchKey
    sequence: int
    arrival: float
    deadline: float = math.inf
    nbytes: int = 0
    backlog: float = 0.0
    remaining: int = field(init=False)
    state: JobState = field(init=False, default=JobState.QUEUED)
    batch_size: int = field(init=False, default=0)
    mates: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.remaining = self.request.steps_run

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def live(self) -> bool:
        return self.state is JobState.QUEUED or self.state is JobState.RUNNING

    def advance(self, to: JobState) -> None:
        """Raises ``ValueError`` on a transition that the table does not hold."""
        if to not in TRANSITIONS[self.state]:
            raise ValueError(f"a job cannot go from {self.state} to {to}")
        self.state = to
