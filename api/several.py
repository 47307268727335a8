"""``submit_all``: the pictures of one request, which succeed or fail together."""

import asyncio
from collections.abc import Sequence

from core.request import InferenceRequest
from core.result import InferenceResult, OnProgress
from core.service import Submit


async def submit_all(
    submit: Submit, requests: Sequence[InferenceRequest], on_progress: OnProgress | None = None
) -> list[InferenceResult]:
    """Results in the order of ``requests``, or the first failure, which ends the others.

    on_progress: is told of the first one's.
    """
    if len(requests) == 1:
        return [await submit(requests[0], on_progress)]
    tasks = [
        asyncio.ensure_future(submit(request, None if place else on_progress))
        for place, request in enumerate(requests)
    ]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
