"""One job as a stream of events, for dialects that tell their callers how far it is."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TypeAlias

from core.errors import ExecutionError, RequestError, ServingError
from core.request import InferenceRequest
from core.result import InferenceResult, Progress
from core.service import Submit

POLL_SECONDS = 1.0  # between two looks at a place in the queue
KEEP_ALIVE_SECONDS = 10.0  # of silence, after which proxies begin to close connections


@dataclass(frozen=True, slots=True)
class Done:
    result: InferenceResult


@dataclass(frozen=True, slots=True)
class Failed:
    error: ServingError


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Nothing happened for a while."""


Event: TypeAlias = Progress | Done | Failed | KeepAlive


async def events(
    submit: Submit,
    request: InferenceRequest,
    progress: Callable[[str], Progress | None],
    *,
    poll_seconds: float = POLL_SECONDS,
    keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
) -> AsyncGenerator[Event, None]:
    """Progress while queued (when the place changes) and after every step; then ``Done`` or ``Failed``, once.

    progress: where a live job stands, by its id. Leaving the iterator cancels the job.
    """
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[Progress | None] = asyncio.Queue()

    def tell(step: Progress) -> None:  # on the device thread
        loop.call_soon_threadsafe(told.put_nowait, step)

    job = asyncio.ensure_future(submit(request, tell))
    job.add_done_callback(lambda _: told.put_nowait(None))
    place: int | None = None
    silent = 0.0
    try:
        await asyncio.sleep(0)  # a refusal at once is the first event
        if job.done():
            yield _end(job)
            return
        yield progress(request.id) or Progress(state="queued", step=0, steps=request.steps_run)
        while True:
            standing = progress(request.id)
            if standing is not None and standing.position is not None and standing.position != place:
                place, silent = standing.position, 0.0
                yield standing
            try:
                async with asyncio.timeout(poll_seconds):
                    step = await told.get()
            except TimeoutError:
                silent += poll_seconds
                if silent >= keep_alive_seconds:
                    silent = 0.0
                    yield KeepAlive()
                continue
            if step is None:
                yield _end(job)
                return
            silent = 0.0
            yield step
    finally:
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)


def _end(job: "asyncio.Future[InferenceResult]") -> Done | Failed:
    if job.cancelled():  # by whoever computes, not by us
        return Failed(RequestError("cancelled", "the request was cancelled"))
    error = job.exception()
    if error is None:
        return Done(job.result())
    if isinstance(error, ServingError):
        return Failed(error)
    return Failed(ExecutionError("pipeline_error", "the server failed on this request"))
