"""``Ledger``: which caller waits for which job, and the one place where a job is answered.

Knows no thread and no pipeline. Methods marked *locked* are called with ``lock`` held; ``deliver``,
which runs callers' callbacks, never is.
"""

from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass

from batching.job import Job, JobState
from batching.policy import BatchPolicy
from batching.scheduler import Scheduler
from core.errors import ExecutionError, ServingError
from core.pipeline import RowState
from core.request import InferenceRequest
from core.result import InferenceResult, OnProgress


@dataclass(slots=True, eq=False)
class Ticket:
    """A live job's other half: what the scheduler must not know."""

    job: Job
    future: Future[InferenceResult]
    on_progress: OnProgress | None
    state: RowState | None = None
    prepared_at: float = 0.0
    shows: bool = True  # until a preview of it failed


class Ledger:
    def __init__(
        self, policy: BatchPolicy, clock: Callable[[], float], lock: AbstractContextManager[object]
    ) -> None:
        self.clock = clock
        self.lock = lock
        self.scheduler = Scheduler(policy)
        self.tickets: dict[str, Ticket] = {}
        self.batch_sizes: Counter[int] = Counter()
        self.batch_stops: Counter[str] = Counter()
        self.stage_seconds = dict.fromkeys(("acquire", "prepare", "step", "preview", "decode"), 0.0)
        self.unanswered = 0  # accepted requests whose future is not set yet
        self._outbox: deque[tuple[Future[InferenceResult], InferenceResult | ServingError]] = deque()

    @property
    def undelivered(self) -> bool:
        return bool(self._outbox)

    def enter(
        self, request: InferenceRequest, future: Future[InferenceResult], on_progress: OnProgress | None
    ) -> Job:
        """Locked. Raises what ``Scheduler.submit`` raises."""
        job = self.scheduler.submit(request, self.clock())
        self.tickets[job.id] = Ticket(job, future, on_progress)
        self.unanswered += 1
        return job

    def settle(self, job: Job, to: JobState, answer: InferenceResult | ServingError) -> None:
        """Locked. The first to come decides how a job ended; a caller who has cancelled came first."""
        if not job.live:
            return
        future = self.tickets.pop(job.id).future
        if future.set_running_or_notify_cancel():  # from here on the caller cannot cancel it
            self._outbox.append((future, answer))
        else:
            to = JobState.CANCELLED
            self.unanswered -= 1
        self.scheduler.finish(job, to)

    def settle_all(self, error: ServingError, model: str | None = None) -> None:
        """Locked. Fail every live job, or every one of a model."""
        for job in self.scheduler.jobs:
            if model is None or job.key.model == model:
                self.settle(job, JobState.FAILED, error)

    def settle_due(self) -> None:
        """Locked. Answer every job whose deadline has passed."""
        for job in self.scheduler.due(self.clock()):
            # The figure the caller named is not known here: part of it went before the request arrived.
            message = "the request was not done within its time; allow more or ask for less"
            self.settle(job, JobState.EXPIRED, ExecutionError("deadline_exceeded", message))

    def deliver(self) -> int:
        """Set the futures of settled jobs; how many. Their number is then taken off ``unanswered``."""
        delivered = 0
        while True:
            try:
                future, answer = self._outbox.popleft()
            except IndexError:
                return delivered
            if isinstance(answer, ServingError):
                future.set_exception(answer)
            else:
                future.set_result(answer)
            delivered += 1
