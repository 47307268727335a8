"""One job in, one answer out: the handler that the SDK calls. Knows no SDK.

Whatever happens, the SDK gets a dict it can post. The one exception is a stop signal: the SDK
cancels the task, and the cancellation is passed on so that the row leaves its batch.
"""

import asyncio
import hashlib
import itertools
import logging
import marshal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from core.errors import ExecutionError, RequestError, ServingError
from serverless.execution import Execution
from serverless.output import refusal
from serverless.progress import ProgressFeed

log = logging.getLogger(__name__)

Tell = Callable[[str, dict[str, object]], Awaitable[None]]


@dataclass(frozen=True, slots=True, eq=False)
class _Delivery:
    digest: bytes
    answer: asyncio.Task[dict[str, Any]]


class JobHandler:
    """Use from one event loop.

    tell:     posts a progress update of a job.
    remember: answers kept (at least one) for jobs that are delivered again after they succeeded.
    remember_bytes: how large they may be together; the latest is kept whatever its size.
    """

    def __init__(
        self,
        execution: Execution,
        tell: Tell,
        *,
        progress_seconds: float = 1.0,
        remember: int = 8,
        remember_bytes: int = 64 * 2**20,
    ) -> None:
        self._execution = execution
        self._tell = tell
        self._progress_seconds = progress_seconds
        self._remember = remember
        self._remember_bytes = remember_bytes
        self._deliveries: dict[str, _Delivery] = {}
        self._executions = itertools.count(1)

    async def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """The answer to ``job``. A job that is delivered twice runs once, and both get its answer."""
        arrived = time.monotonic()
        job_id, digest = str(job["id"]), _digest(job.get("input"))
        delivery = self._deliveries.get(job_id)
        if delivery is None or delivery.digest != digest:
            delivery = _Delivery(digest, asyncio.ensure_future(self._answer(job, job_id, arrived)))
            self._deliveries[job_id] = delivery
        try:
            # A copy: the SDK takes keys out of what it is given.
            answer = dict(await asyncio.shield(delivery.answer))
        except asyncio.CancelledError:
            self._forget(job_id, delivery)
            if not _being_cancelled():
                return refusal(RequestError("cancelled", "the job was stopped"))
            delivery.answer.cancel()
            raise
        if "error" in answer:
            self._forget(job_id, delivery)
        self._forget_oldest()
        return answer

    def _forget(self, job_id: str, delivery: "_Delivery") -> None:
        if self._deliveries.get(job_id) is delivery:
            del self._deliveries[job_id]

    def _forget_oldest(self) -> None:
        ended = [(job_id, each.answer) for job_id, each in self._deliveries.items() if each.answer.done()]
        kept, nbytes = 0, 0
        for job_id, answer in reversed(ended):
            nbytes += _nbytes(answer)
            if kept and (kept >= self._remember or nbytes > self._remember_bytes):
                del self._deliveries[job_id]
            else:
                kept += 1

    async def _answer(self, job: dict[str, Any], job_id: str, arrived: float) -> dict[str, Any]:
        try:
            # Unique also when a stopped job comes again while its row is still leaving the batch.
            request_id = f"{job_id}/{next(self._executions)}"
            async with ProgressFeed(
                lambda update: self._tell(job_id, update), self._progress_seconds
            ) as feed:
                answer = await self._execution(
                    job, feed, job_id=job_id, request_id=request_id, arrived=arrived
                )
        except ServingError as error:
            return refusal(error)
        except asyncio.CancelledError:
            if _being_cancelled():
                raise
            return refusal(RequestError("cancelled", "the job was stopped"))
        except Exception:
            log.exception("job %s failed outside the pipeline", job_id)
            return refusal(ExecutionError("pipeline_error", "the job failed inside the worker; see its log"))
        return answer


def _digest(value: Any) -> bytes:
    """Equal for equal JSON values only. Of its writers, marshal's second format alone takes all that a
    JSON reader gives (NaN, half a surrogate pair, long integers), and it is quick: this is the event loop.
    """
    return hashlib.sha256(marshal.dumps(value, 2)).digest()


def _nbytes(answer: "asyncio.Task[dict[str, Any]]") -> int:
    if answer.cancelled():
        return 0
    return sum(len(value) for value in answer.result().values() if isinstance(value, str))


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
