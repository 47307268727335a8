"""The web UI's live jobs by caller, for its questions about "the" job: how far is it, and stop it.

It refuses to know HTTP. Use from one event loop.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from core.errors import RequestError
from core.request import InferenceRequest
from core.result import InferenceResult, OnProgress, Progress
from core.service import Submit


@dataclass(slots=True)
class LiveJob:
    """step: of ``steps``, told by the device's thread. began: by the monotonic clock."""

    caller: str
    steps: int
    work: "asyncio.Future[InferenceResult]"
    began: float
    step: int = 0
    interrupted: bool = False

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.step / self.steps if self.steps else 0.0


@dataclass(slots=True)
class LiveJobs:
    """now: the monotonic clock, a seam for tests."""

    submit: Submit
    now: Callable[[], float] = time.monotonic
    _jobs: dict[str, LiveJob] = field(default_factory=dict)

    def submit_of(self, caller: str) -> Submit:
        """``submit``, its jobs remembered as this caller's while they live."""
        return partial(self._submit, caller)

    def of(self, caller: str) -> list[LiveJob]:
        """Oldest first."""
        return [job for job in self._jobs.values() if job.caller == caller]

    def interrupt(self, caller: str) -> None:
        """End this caller's jobs, and nobody else's."""
        for job in self.of(caller):
            job.interrupted = True
            job.work.cancel()

    async def _submit(
        self, caller: str, request: InferenceRequest, on_progress: OnProgress | None = None
    ) -> InferenceResult:
        """Raises what ``submit`` raises, and ``RequestError`` ``cancelled`` after an interrupt."""

        def tell(progress: Progress) -> None:  # on the device thread
            job.step = progress.step
            if on_progress is not None:
                on_progress(progress)

        work = asyncio.ensure_future(self.submit(request, tell))
        job = LiveJob(caller, request.steps_run, work, self.now())
        self._jobs[request.id] = job
        try:
            return await work
        except asyncio.CancelledError:
            if job.interrupted:
                raise RequestError("cancelled", "the job was interrupted") from None
            raise
        finally:
            del self._jobs[request.id]
