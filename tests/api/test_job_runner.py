"""Stored jobs are carried out, ended once, and told of to everyone who waits."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from api.job_record import JobOutcome, JobRecord, JobState
from api.job_runner import JobRunner, Work
from api.job_store import JobStore
from core.errors import (
    CapacityError,
    DeviceLost,
    OutOfDeviceMemory,
    RequestError,
    ServingError,
)
from core.result import OnProgress, Progress
from tests.api.jobs import echo, new_job


class Workshop:
    """Work that waits for a test: begun jobs in order, each ended by ``finish`` or ``fail``."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[JobRecord] = asyncio.Queue()
        self.ends: dict[str, asyncio.Future[JobOutcome]] = {}
        self.reports: dict[str, OnProgress] = {}
        self.cancelled: list[str] = []

    async def __call__(self, job: JobRecord, on_progress: OnProgress) -> JobOutcome:
        self.ends[job.id] = asyncio.get_running_loop().create_future()
        self.reports[job.id] = on_progress
        self.begun.put_nowait(job)
        try:
            return await self.ends[job.id]
        except asyncio.CancelledError:
            self.cancelled.append(job.id)
            raise

    def finish(self, job: JobRecord) -> None:
        self.ends[job.id].set_result(JobOutcome(data=job.body))

    def fail(self, job: JobRecord, error: BaseException) -> None:
        self.ends[job.id].set_exception(error)


Story = Callable[[JobRunner, JobStore, Workshop], Awaitable[None]]


def tell(folder: Path, story: Story, *, concurrency: int = 4, **store_options: Any) -> None:
    async def told() -> None:
        workshop = Workshop()
        with JobStore(folder, **store_options) as store:
            kinds: dict[str, Work] = {"held": workshop, "echo": echo}
            runner = JobRunner(store, kinds, concurrency=concurrency, forget_seconds=0)
            runner.start()
            await asyncio.wait_for(story(runner, store, workshop), 20)
            await runner.drain(0)

    asyncio.run(told())


async def held(runner: JobRunner, workshop: Workshop, **fields: Any) -> JobRecord:
    await runner.create(new_job(dialect="held", **fields))
    return await workshop.begun.get()


def test_a_job_is_done_and_everyone_who_waits_hears_of_it(tmp_path: Path) -> None:
    """runsync, a poll and a webhook may all wait for one job."""

    async def story(runner: JobRunner, store: JobStore, workshop: Workshop) -> None:
        job = await held(runner, workshop)
        waiting = [asyncio.ensure_future(runner.wait("ann", job.id, 10)) for _ in range(5)]
        await asyncio.sleep(0)
        workshop.finish(job)
        for heard in await asyncio.gather(*waiting):
            assert heard.state is JobState.SUCCEEDED
            assert heard.outcome == JobOutcome(data=b"body")

    tell(tmp_path, story)


def test_waiting_ends_with_its_time(tmp_path: Path) -> None:
    """RunPod answers a runsync that takes longer with the pending job."""

    async def story(runner: JobRunner, store: JobStore, workshop: Workshop) -> None:
        job = await held(runner, workshop)
        assert (await runner.wait("ann", job.id, 0.05)).state is JobState.RUNNING
        assert (await runner.wait("ann", job.id, 0)).state is JobState.RUNNING
        with pytest.raises(RequestError):
            await runner.wait("bob", job.id, 0)

    tell(tmp_path, story)


def test_no_more_run_than_may(tmp_path: Path) -> None:
    """Their bodies are in memory, and the mux has a queue of its own."""

    async def story(runner: JobRunner, store: JobStore, workshop: Workshop) -> None:
        for _ in range(5):
            await runner.create(new_job(dialect="held"))
        first = await workshop.begun.get()
        await workshop.begun.get()
        assert (await store.counts())[JobState.RUNNING] == 2
        workshop.finish(first)
        await workshop.begun.get()
        assert (await store.counts())[JobState.RUNNING] == 2

    tell(tmp_path, story, concurrency=2)


def test_a_failure_is_told_with_its_code(tmp_path: Path) -> None:
    """What the dialect raised, and for a fault of ours an opaque sentence."""

    async def story(runner: JobRunner, store: JobStore, workshop: Workshop) -> None:
        for error, code, message in (
            (RequestError("invalid_image", "no picture"), "invalid_image", "no picture"),
            (OutOfDeviceMemory(), "gpu_out_of_memory", "smaller image"),
            (KeyError("/etc/secret"), "pipeline_error", "the server failed on this request"),
        ):
            job = await held(runner, workshop)
            workshop.fail(job, error)
            failed = await runner.wait("ann", job.id, 10)
            assert (failed.state, failed.error_code, failed.attempts) == (JobState.FAILED, code, 1)
            assert message in (failed.error_message or "")

    tell(tmp_path, story)


def test_a_full_queue_costs_no_attempt(tmp_path: Path) -> None:
    """The mux is busy with direct requests: the job goes back and comes again, as often as it takes."""

    async def story(runner: JobRunner, store: JobStore, workshop: Workshop) -> None:
        job = await held(runner, workshop)
        for lease in (1, 2):
            assert (job.attempts, job.lease) == (1, lease)
            workshop.fail(job, CapacityError("queue_full", "full", retry_after=1))
            assert (await runner.wait("ann", job.id, 0.2)).state is JobState.QUEUED
            job = await workshop.begun.get()
        workshop.finish(job)
        assert (await runner.wait("ann", job.id, 10)).state is JobState.SUCCEEDED

    tell(tmp_path, story)


def test_while_everybody_is_refused_nothing_is_begun(tmp_path: Path) -> None:
    """A hundred jobs would otherwise be taken and put back, each with two syncs of the disk."""

    async def story(runner: JobRunner, store: JobStore, workshop: Workshop) -> None:
        job = await held(runner, workshop)
        workshop.fail(job, CapacityError("not_ready", "restarting", retry_after=1))
        assert (await runner.wait("ann", job.id, 0.2)).state is JobState.QUEUED
        other, _ = await runner.create(new_job())
        assert (await runner.wait("ann", other.id, 0.3)).state is JobState.QUEUED
        assert (await runner.wait("ann", other.id, 5)).state is JobState.SUCCEEDED

    tell(tmp_path, story)


def test_a_model_that_loads_holds_up_its_own_jobs_alone(tmp_path: Path) -> None:
    """Others may be for the model that is there."""

    async def story(runner: JobRunner, store: JobStore, workshop: Workshop) -> None:
        job = await held(runner, workshop)
        workshop.fail(job, CapacityError("model_loading", "loading", retry_after=60))
        other, _ = await runner.create(new_job())
        assert (await runner.wait("ann", other.id, 5)).state is JobState.SUCCEEDED

    tell(tmp_path, story)


def test_a_lost_device_costs_an_attempt(tmp_path: Path) -> None:
    """This job may be what loses it; three times is enough."""

    async def story(runner: JobRunner, store: JobStore, workshop: Workshop) -> None:
        job = await held(runner, workshop)
        for attempt in (1, 2, 3):
            assert job.attempts == attempt
            workshop.fail(job, DeviceLost())
            if attempt < 3:
                job = await workshop.begun.get()
        failed = await runner.wait("ann", job.id, 10)
        assert (failed.state, failed.error_code) == (JobState.FAILED, "device_lost")

    tell(tmp_path, story)


def test_a_queued_job_that_is_cancelled_is_never_begun(tmp_path: Path) -> None:
    """And whoever waits for it is told at once."""

    async def story(runner: JobRunner, store: JobStore, workshop: Workshop) -> None:
        running = await held(runner, workshop)
        waiting, _ = await runner.create(new_job(dialect="held"))
        others = [(await runner.create(new_job(dialect="held")))[0] for _ in range(2)]
        hearing = [asyncio.ensure_future(runner.wait("ann", j.id, 10)) for j in (waiting, *others)]
        await asyncio.sleep(0)
        assert (await runner.cancel("ann", waiting.id)).state is JobState.CANCELLED
        assert await runner.purge_queue("ann") == 2
        assert {job.state for job in await asyncio.gather(*hearing)} == {JobState.CANCELLED}
        workshop.finish(running)
        assert (await runner.wait("ann", running.id, 10)).state is JobState.SUCCEEDED
        assert workshop.begun.empty()

    tell(tmp_path, story, concurrency=1)


def test_a_running_job_that_is_cancelled_ends_its_work(tmp_path: Path) -> None:
    """Cancelling the task is what the mux understands. Another owner cannot."""

    async def story(runner: JobRunner, store: JobStore, workshop: Workshop) -> None:
        job = await held(runner, workshop)
        with pytest.raises(RequestError):
            await runner.cancel("bob", job.id)
        assert (await runner.cancel("ann", job.id)).state is JobState.CANCELLED
        other = await held(runner, workshop)  # the place is free again
        assert workshop.cancelled == [job.id]
        assert (await store.get("ann", job.id)).error_code == "cancelled"
        workshop.finish(other)
        assert (await runner.wait("ann", other.id, 10)).state is JobState.SUCCEEDED
        assert (await runner.cancel("ann", other.id)).state is JobState.SUCCEEDED

    tell(tmp_path, story, concurrency=1)


def test_an_execution_takes_no_longer_than_it_may(tmp_path: Path) -> None:
    """policy.executionTimeout counts from the start of the run, policy.ttl from the submission."""

    async def story(runner: JobRunner, store: JobStore, workshop: Workshop) -> None:
        brief = await held(runner, workshop, execution_timeout=0.1)
        dying = await held(runner, workshop, ttl=0.3)
        for job in (brief, dying):
            expired = await runner.wait("ann", job.id, 10)
            assert (expired.state, expired.error_code) == (JobState.EXPIRED, "deadline_exceeded")
        assert workshop.cancelled == [brief.id, dying.id]

    tell(tmp_path, story)


def test_what_waits_too_long_expires_and_is_told(tmp_path: Path) -> None:
    """The queue is looked through every second."""

    async def story(runner: JobRunner, store: JobStore, workshop: Workshop) -> None:
        await held(runner, workshop)
        waiting, _ = await runner.create(new_job(ttl=0.1))
        assert (await runner.wait("ann", waiting.id, 10)).state is JobState.EXPIRED

    tell(tmp_path, story, concurrency=1)


def test_progress_is_heard_while_it_lasts(tmp_path: Path) -> None:
    """From the device thread to every reader; a slow one gets the latest, and all of them an end."""

    async def story(runner: JobRunner, store: JobStore, workshop: Workshop) -> None:
        job = await held(runner, workshop)
        reports = aiter(runner.follow("ann", job.id))
        for step in (1, 2, 3):
            hearing = asyncio.ensure_future(anext(reports))
            report = Progress(state="running", step=step, steps=3)
            await asyncio.to_thread(workshop.reports[job.id], report)
            assert await hearing == report == runner.progress(job.id)
        workshop.finish(job)
        with pytest.raises(StopAsyncIteration):
            await anext(reports)
        assert runner.progress(job.id) is None
        workshop.reports[job.id](report)  # late, and harmless
        await asyncio.sleep(0)
        assert runner.progress(job.id) is None
        with pytest.raises(RequestError):
            await anext(aiter(runner.follow("bob", job.id)))

    tell(tmp_path, story)


def test_a_drain_finishes_what_it_can_and_queues_the_rest(tmp_path: Path) -> None:
    """The next process begins it again, with all its attempts."""
    left: list[str] = []

    async def story(runner: JobRunner, store: JobStore, workshop: Workshop) -> None:
        quick, slow = await held(runner, workshop), await held(runner, workshop)
        waiting, _ = await runner.create(new_job())
        hearing = asyncio.ensure_future(runner.wait("ann", slow.id, 10))
        draining = asyncio.ensure_future(runner.drain(0.2))
        await asyncio.sleep(0)
        with pytest.raises(CapacityError) as caught:
            await runner.create(new_job())
        assert caught.value.code == "shutting_down"
        workshop.finish(quick)
        await draining
        assert (await store.get("ann", quick.id)).state is JobState.SUCCEEDED
        assert (await hearing).state is JobState.QUEUED
        left.extend([slow.id, waiting.id])

    async def told() -> None:
        workshop = Workshop()
        with JobStore(tmp_path) as store:
            runner = JobRunner(store, {"held": workshop, "echo": echo}, concurrency=2)
            runner.start()
            await asyncio.wait_for(story(runner, store, workshop), 20)

    async def next_process() -> None:
        with JobStore(tmp_path) as store:
            assert [(job.id, job.attempts) for job in await store.claim(5)] == [(id, 1) for id in left]

    asyncio.run(told())
    asyncio.run(next_process())


def test_a_kind_of_job_that_is_gone_fails(tmp_path: Path) -> None:
    """An upgrade may drop a dialect; its old jobs must not stay for ever."""

    async def story(runner: JobRunner, store: JobStore, workshop: Workshop) -> None:
        job, _ = await store.create(new_job(dialect="gone"))
        await runner.create(new_job())
        assert (await runner.wait("ann", job.id, 10)).error_code == "pipeline_error"
        with pytest.raises(ValueError, match="nothing carries out"):
            await runner.create(new_job(dialect="gone"))

    tell(tmp_path, story)


class Reluctant(JobStore):
    """Refuses the first results, as a disk does that somebody clears meanwhile."""

    refusals = 2

    async def succeed(self, id: str, lease: int, outcome: JobOutcome) -> bool:
        if self.refusals:
            self.refusals -= 1
            raise CapacityError("storage_full", "full")
        return await super().succeed(id, lease, outcome)


def test_a_result_waits_for_room(tmp_path: Path) -> None:
    """It was dear: it is kept as soon as it can be, and the work is not done twice."""

    async def told() -> None:
        workshop = Workshop()
        with Reluctant(tmp_path) as store:
            runner = JobRunner(store, {"held": workshop})
            runner.start()
            job = await held(runner, workshop)
            workshop.finish(job)
            assert (await runner.wait("ann", job.id, 10)).state is JobState.SUCCEEDED
            assert store.refusals == 0
            assert workshop.begun.empty()
            await runner.drain(0)

    asyncio.run(told())


def test_finished_jobs_are_forgotten_as_time_passes(tmp_path: Path) -> None:
    """Nobody has to call for it: a store that grows for ever is the usual fault."""

    async def story(runner: JobRunner, store: JobStore, workshop: Workshop) -> None:
        job, _ = await runner.create(new_job(keep=0.0))
        await runner.wait("ann", job.id, 10)
        code = ""
        while not code:
            try:
                await store.get("ann", job.id)
            except ServingError as error:
                code = error.code
            await asyncio.sleep(0.01)
        assert code == "expired"

    tell(tmp_path, story)
