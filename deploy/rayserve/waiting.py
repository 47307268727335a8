"""``Waiting``: the queue before the replicas, as the ingress sees it: bounded, timed, counted."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from core.errors import CapacityError, ExecutionError, RequestError, ServingError
from core.request import InferenceRequest
from core.result import InferenceResult, OnProgress, Progress
from core.service import Submit

_MEMORY = 0.1  # of the newest interval between two answers, in their running mean


@dataclass(slots=True)
class _Live:
    request: InferenceRequest
    progress: Progress | None = None  # None until a replica took it

    @property
    def waits(self) -> bool:
        return self.progress is None or self.progress.state == "queued"


class Waiting:
    """``core.service.Submit`` and ``Admit`` around another: use from one event loop.

    most: requests that no replica has begun; one more is refused. The accounting identity of
    ``counts`` holds at any moment: accepted = succeeded + failed + cancelled + expired + queued + running.
    """

    def __init__(self, submit: Submit, *, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._submit = submit
        self._most = most
        self._clock = clock
        self._live: dict[str, _Live] = {}
        self._ended: Counter[str] = Counter()
        self._interval = 0.0  # seconds between two answers
        self._answered_at: float | None = None

    def admit(self) -> None:
        """Raises ``CapacityError`` ``queue_full``."""
        waiting = sum(live.waits for live in self._live.values())
        if waiting >= self._most:
            raise CapacityError(
                "queue_full",
                f"{waiting} requests are waiting, the limit is {self._most}; try again later",
                retry_after=waiting * self._interval,
            )

    async def __call__(
        self, request: InferenceRequest, on_progress: OnProgress | None = None
    ) -> InferenceResult:
        self.admit()
        if request.id in self._live:
            raise ValueError(f"a live request has the id {request.id!r}")
        live = self._live[request.id] = _Live(request)

        def tell(progress: Progress) -> None:
            live.progress = progress if progress.preview is None else replace(progress, preview=None)
            if on_progress is not None:
                on_progress(progress)

        end = "cancelled"
        try:
            async with asyncio.timeout(request.timeout):
                result = await self._submit(request, tell)
            end = "succeeded"
            return result
        except TimeoutError:
            # The replica's own clock starts when it takes the request; this one counts the wait before too.
            end = "expired"
            message = "the request was not done within its time; allow more or ask for less"
            raise ExecutionError("deadline_exceeded", message) from None
        except ServingError as error:
            end = _state_of(error)
            raise
        except Exception:
            end = "failed"
            raise
        finally:
            del self._live[request.id]
            self._ended[end] += 1
            self._pace()

    def progress(self, request_id: str) -> Progress | None:
        """Where a live request stands; its position counts those that came earlier and wait too."""
        live = self._live.get(request_id)
        if live is None or not live.waits:
            return None if live is None else live.progress
        position = 0
        for other in self._live.values():
            if other is live:
                break
            position += other.waits
        return Progress(state="queued", step=0, steps=live.request.steps_run, position=position)

    @property
    def counts(self) -> dict[str, int]:
        queued = sum(live.waits for live in self._live.values())
        states = {"queued": queued, "running": len(self._live) - queued}
        states |= {state: self._ended[state] for state in ("succeeded", "failed", "cancelled", "expired")}
        return {"accepted": sum(states.values()), **states}

    def _pace(self) -> None:
        now = self._clock()
        if self._answered_at is not None:
            latest = now - self._answered_at
            self._interval += _MEMORY * (latest - self._interval) if self._interval else latest
        self._answered_at = now


def _state_of(error: ServingError) -> str:
    if error.code == "deadline_exceeded":
        return "expired"
    return "cancelled" if isinstance(error, RequestError) and error.code == "cancelled" else "failed"
