"""The pictures of one request: in order, and all or none."""

import asyncio
from dataclasses import replace

import pytest

from api.several import submit_all
from core.errors import ExecutionError
from core.request import InferenceRequest
from core.result import InferenceResult, OnProgress
from tests.api.test_stream import REQUEST, RESULT

REQUESTS = [replace(REQUEST, id=name) for name in "abc"]


def test_results_are_in_the_order_of_the_requests_whoever_is_done_first() -> None:
    """The answer's seeds are told by place. One bar of progress is drawn, by the first."""
    told: dict[str, OnProgress | None] = {}
    turns = {name: asyncio.Event() for name in "abc"}

    async def submit(request: InferenceRequest, on_progress: OnProgress | None = None) -> InferenceResult:
        told[request.id] = on_progress
        if len(told) == len(REQUESTS):
            turns["c"].set()
        await turns[request.id].wait()
        for name in {"c": "b", "b": "a"}.get(request.id, ""):
            turns[name].set()
        return replace(RESULT, id=request.id)

    results = asyncio.run(asyncio.wait_for(submit_all(submit, REQUESTS, print), 20))
    assert [result.id for result in results] == ["a", "b", "c"]
    assert told == {"a": print, "b": None, "c": None}


def test_the_first_failure_ends_the_others() -> None:
    """Nobody would see them; and they have left the device when the failure is told."""
    begun, ended = set[str](), set[str]()
    all_begun = asyncio.Event()

    async def submit(request: InferenceRequest, on_progress: OnProgress | None = None) -> InferenceResult:
        begun.add(request.id)
        if len(begun) == len(REQUESTS):
            all_begun.set()
        try:
            await (all_begun.wait() if request.id == "b" else asyncio.Event().wait())
            raise ExecutionError("pipeline_error", "broken")
        finally:
            ended.add(request.id)

    async def main() -> None:
        with pytest.raises(ExecutionError, match="broken"):
            await submit_all(submit, REQUESTS)
        assert ended == begun == {"a", "b", "c"}

    asyncio.run(asyncio.wait_for(main(), 20))
