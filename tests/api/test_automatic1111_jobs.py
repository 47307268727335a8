"""Jobs by caller: what is told of them while they live, and who ends them."""

import asyncio
from dataclasses import dataclass, field

import pytest

from api.automatic1111_jobs import LiveJobs
from core.errors import CapacityError, RequestError
from core.request import Image, InferenceRequest, Task
from core.result import InferenceResult, OnProgress, Progress
from tests.api.serving import CATALOG

RESULT = InferenceResult(
    id="job", output=Image(pixels=bytes(3), width=1, height=1), model="dreamer", seed=1, steps=4
)


def request(job_id: str) -> InferenceRequest:
    return CATALOG.get("dreamer").request(id=job_id, task=Task.GENERATE, prompt="p", steps=4)


@dataclass
class Stepper:
    """A submit that ends when it is let, and hands out the listener of its steps."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    listeners: dict[str, OnProgress] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    fault: Exception | None = None

    async def __call__(
        self, request: InferenceRequest, on_progress: OnProgress | None = None
    ) -> InferenceResult:
        assert on_progress is not None
        self.listeners[request.id] = on_progress
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        if self.fault is not None:
            raise self.fault
        return RESULT

    def step(self, job_id: str, step: int) -> None:
        self.listeners[job_id](Progress(state="running", step=step, steps=4))


async def started(jobs: LiveJobs, caller: str, job_id: str) -> "asyncio.Task[InferenceResult]":
    submit = jobs.submit_of(caller)

    async def run() -> InferenceResult:
        return await submit(request(job_id))

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


def test_a_job_is_known_by_its_caller_while_it_lives() -> None:
    """With its steps as the device tells them; then it is forgotten, or memory would grow."""

    async def run() -> None:
        submit = Stepper()
        jobs = LiveJobs(submit)
        first, second = await started(jobs, "a", "1"), await started(jobs, "a", "2")
        await started(jobs, "b", "3")
        submit.step("1", 3)
        assert [(job.step, job.share) for job in jobs.of("a")] == [(3, 0.75), (0, 0.0)]
        assert len(jobs.of("b")) == 1
        submit.gate.set()
        assert [await first, await second] == [RESULT, RESULT]
        assert jobs.of("a") == []

    asyncio.run(run())


def test_a_listener_hears_of_the_steps_too() -> None:
    """The port's own promise holds behind the wrapper."""

    async def run() -> None:
        submit, heard = Stepper(), list[int]()
        jobs = LiveJobs(submit)
        submit_of_a = jobs.submit_of("a")

        async def call() -> InferenceResult:
            return await submit_of_a(request("1"), lambda progress: heard.append(progress.step))

        task = asyncio.create_task(call())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        submit.step("1", 2)
        submit.gate.set()
        await task
        assert heard == [2]

    asyncio.run(run())


def test_an_interrupt_is_told_from_a_caller_who_left() -> None:
    """The first is answered with a sentence; the second must stay a cancellation."""

    async def run() -> None:
        submit = Stepper()
        jobs = LiveJobs(submit)
        interrupted, left = await started(jobs, "a", "1"), await started(jobs, "b", "2")
        jobs.interrupt("a")
        left.cancel()
        with pytest.raises(RequestError) as caught:
            await interrupted
        assert caught.value.code == "cancelled"
        with pytest.raises(asyncio.CancelledError):
            await left
        assert submit.cancelled == ["1", "2"]
        assert jobs.of("a") == jobs.of("b") == []

    asyncio.run(run())


def test_a_refusal_passes_and_leaves_nothing() -> None:
    """A full queue is not a live job."""

    async def run() -> None:
        submit = Stepper(fault=CapacityError("queue_full", "full"))
        submit.gate.set()
        jobs = LiveJobs(submit)
        with pytest.raises(CapacityError):
            await (await started(jobs, "a", "1"))
        assert jobs.of("a") == []

    asyncio.run(run())
