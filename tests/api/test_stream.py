"""A job as events: every caller sees a beginning and exactly one end, and leaving is a cancel."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from api.stream import Done, Event, Failed, KeepAlive, events
from core.errors import CapacityError
from core.request import Image, InferenceRequest, Task
from core.result import InferenceResult, OnProgress, Progress
from tests.api.serving import CATALOG

REQUEST: InferenceRequest = CATALOG.default.request(
    id="job",
    task=Task.EDIT,
    prompt="night",
    images=(Image(pixels=bytes(64 * 64 * 3), width=64, height=64),),
    steps=3,
)
RESULT = InferenceResult(
    id="job", output=Image(pixels=bytes(3), width=1, height=1), model="painter", seed=1, steps=3
)


class Steps:
    """A submit that tells of each step when it is let, and then ends as it was told."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault = fault
        self.allowed = asyncio.Semaphore(0)
        self.cancelled = asyncio.Event()

    async def __call__(
        self, request: InferenceRequest, on_progress: OnProgress | None = None
    ) -> InferenceResult:
        assert on_progress is not None
        try:
            for step in range(1, request.steps + 1):
                await self.allowed.acquire()
                await asyncio.to_thread(
                    on_progress, Progress(state="running", step=step, steps=request.steps)
                )
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.fault is not None:
            raise self.fault
        return RESULT


def waiting_at(*places: int) -> Callable[[str], Progress | None]:
    """Progress of a job that moves up in the queue at every look."""
    left = list(places)

    def progress(job_id: str) -> Progress | None:
        place = left.pop(0) if left else None
        return None if place is None else Progress(state="queued", step=0, steps=3, position=place)

    return progress


def told(*kinds: Event) -> list[Any]:
    return [event.step if isinstance(event, Progress) else type(event) for event in kinds]


def test_a_job_is_told_from_its_place_to_its_end() -> None:
    """Place, steps, result: what a progress bar needs, in order."""

    async def run() -> list[Event]:
        submit = Steps()
        for _ in range(3):
            submit.allowed.release()
        return [event async for event in events(submit, REQUEST, waiting_at(2, 2, 1), poll_seconds=5)]

    seen = asyncio.run(run())
    assert isinstance(seen[0], Progress)
    assert seen[0].position == 2
    assert [event.step for event in seen if isinstance(event, Progress) and event.state == "running"] == [
        1,
        2,
        3,
    ]
    assert seen[-1] == Done(RESULT)
    assert sum(isinstance(event, Done | Failed) for event in seen) == 1


@pytest.mark.parametrize(
    ("fault", "code"),
    [(CapacityError("gpu_out_of_memory", "full"), "gpu_out_of_memory"), (KeyError("x"), "pipeline_error")],
    ids=["ours", "unforeseen"],
)
def test_a_failure_is_the_last_event(fault: Exception, code: str) -> None:
    """Also one that nobody foresaw, without its text."""

    async def run() -> list[Event]:
        submit = Steps(fault)
        for _ in range(3):
            submit.allowed.release()
        return [event async for event in events(submit, REQUEST, waiting_at())]

    last = asyncio.run(run())[-1]
    assert isinstance(last, Failed)
    assert last.error.code == code


def test_a_refusal_is_the_first_event() -> None:
    """So that the caller can still be answered with a status."""

    async def refuse(request: InferenceRequest, on_progress: OnProgress | None = None) -> InferenceResult:
        raise CapacityError("queue_full", "full", retry_after=1)

    async def run() -> list[Event]:
        return [event async for event in events(refuse, REQUEST, waiting_at())]

    (only,) = asyncio.run(run())
    assert isinstance(only, Failed)
    assert only.error.code == "queue_full"


def test_leaving_cancels_the_job() -> None:
    """A closed page must not cost a GPU its time."""

    async def run() -> None:
        submit = Steps()
        submit.allowed.release()
        source = events(submit, REQUEST, waiting_at())
        async for event in source:
            if isinstance(event, Progress) and event.step == 1:
                break
        await source.aclose()
        async with asyncio.timeout(5):
            await submit.cancelled.wait()

    asyncio.run(run())


def test_silence_is_broken() -> None:
    """Proxies close connections on which nothing moves."""

    async def run() -> list[Event]:
        submit, seen = Steps(), []
        source = events(submit, REQUEST, waiting_at(), poll_seconds=0.01, keep_alive_seconds=0.02)
        async for event in source:
            seen.append(event)
            if isinstance(event, KeepAlive):
                break
        await source.aclose()
        return seen

    assert told(*asyncio.run(run())) == [0, KeepAlive]
