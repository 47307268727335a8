"""Pieces that every HTTP dialect needs around one request: its id, and the caller who may leave."""

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, TypeVar

from api.body import ClientGone, Receive
from core.errors import RequestError
from core.result import InferenceResult

T = TypeVar("T")

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id(sent: str | None, job_id: str) -> str:
    """The caller's own id where it is harmless in a header and a log line, else ours."""
    return sent if sent and _SANE_ID.fullmatch(sent) else job_id


def figures(result: InferenceResult) -> dict[str, str]:
    """Headers of every image answer."""
    return {
        "X-Seed": str(result.seed),
        "X-Model": result.model,
        "X-Queue-Ms": f"{result.queue_seconds * 1000:.1f}",
        "X-Inference-Ms": f"{result.inference_seconds * 1000:.1f}",
        "X-Batch-Size": str(result.batch_size),
    }


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The outcome of ``work``, which is cancelled as soon as the caller closes the connection.

    Raises what ``work`` raises, and ``ClientGone`` after ``work`` has ended.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        if working.cancelled():  # by whoever computes, not by us
            raise RequestError("cancelled", "the request was cancelled")
        return working.result()
    finally:
        watching.cancel()
        working.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
