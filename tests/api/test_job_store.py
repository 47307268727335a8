"""The job store as the event loop sees it: acknowledged is durable, and nobody blocks anybody."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from api.job_record import JobOutcome, JobState, StoreLimits
from api.job_store import JobStore
from core.errors import CapacityError, RequestError, ServingError
from tests.api.jobs import WallClock, new_job


def with_store(folder: Path, story: Callable[[JobStore], Awaitable[None]], **options: object) -> None:
    async def told() -> None:
        with JobStore(folder, **options) as store:  # type: ignore[arg-type]
            await asyncio.wait_for(story(store), 20)

    asyncio.run(told())


def test_concurrent_submissions_share_commits(tmp_path: Path) -> None:
    """A hundred callers do not wait for a hundred syncs."""

    async def story(store: JobStore) -> None:
        before = store.commits
        await asyncio.gather(*(store.create(new_job(b"%d" % n)) for n in range(100)))
        assert store.commits - before <= 10
        assert (await store.counts())[JobState.QUEUED] == 100

    with_store(tmp_path, story)


def test_equal_submissions_at_once_are_one_job(tmp_path: Path) -> None:
    """A client that retries before the first answer came must not pay twice."""

    async def story(store: JobStore) -> None:
        made = await asyncio.gather(*(store.create(new_job(idempotency_key="k")) for _ in range(20)))
        assert len({job.id for job, _ in made}) == 1
        assert sum(fresh for _, fresh in made) == 1
        assert len(await store.claim(20)) == 1
        with pytest.raises(RequestError) as caught:
            await store.create(new_job(b"other", idempotency_key="k"))
        assert caught.value.code == "conflict"

    with_store(tmp_path, story)


def test_an_acknowledged_job_is_there_after_a_restart(tmp_path: Path) -> None:
    """With everything that was said about it; what ran is queued again, what was done stays done."""
    ids: dict[str, str] = {}

    async def before(store: JobStore) -> None:
        for name in ("done", "running", "waiting"):
            job, _ = await store.create(new_job(name.encode(), ttl=1e6, execution_timeout=5.0))
            ids[name] = job.id
        done, _ = await store.claim(2)
        assert await store.succeed(done.id, done.lease, JobOutcome(data=b"answer", media_type="image/png"))

    async def after(store: JobStore) -> None:
        done = await store.get("ann", ids["done"])
        assert done.outcome == JobOutcome(data=b"answer", media_type="image/png")
        assert (await store.get("ann", ids["running"])).state is JobState.QUEUED
        running, waiting = await store.claim(5)
        assert (running.id, running.body, running.attempts) == (ids["running"], b"running", 2)
        assert (waiting.id, waiting.body, waiting.attempts) == (ids["waiting"], b"waiting", 1)
        assert waiting.execution_timeout == 5.0

    with_store(tmp_path, before)
    with_store(tmp_path, after)


def test_a_result_that_does_not_fit_is_not_half_kept(tmp_path: Path) -> None:
    """A full disk: 507 for what is large, and the job goes on running until somebody decides."""

    async def story(store: JobStore) -> None:
        await store.create(new_job())
        (job,) = await store.claim(1)
        await store._write(lambda db: db.execute("PRAGMA max_page_count = 60").fetchall())
        with pytest.raises(CapacityError) as caught:
            await store.succeed(job.id, job.lease, JobOutcome(data=bytes(500_000)))
        assert caught.value.code == "storage_full"
        with pytest.raises(CapacityError):
            await store.create(new_job(bytes(500_000)))
        found = await store.get("ann", job.id)
        assert (found.state, found.outcome) == (JobState.RUNNING, None)
        assert await store.fail(job.id, job.lease, caught.value)
        assert (await store.get("ann", job.id)).error_code == "storage_full"

    with_store(tmp_path, story)


def test_the_last_of_the_disk_is_for_the_ends_of_accepted_jobs(tmp_path: Path) -> None:
    """On a disk that is full to the last byte no job could even fail."""

    async def story(store: JobStore) -> None:
        job, _ = await store.create(new_job(idempotency_key="k"))
        store.limits = StoreLimits(min_free_bytes=2**60)
        with pytest.raises(CapacityError) as caught:
            await store.create(new_job())
        assert caught.value.code == "storage_full"
        assert await store.create(new_job(idempotency_key="k")) == (job, False)
        (run,) = await store.claim(1)
        assert await store.succeed(run.id, run.lease, JobOutcome(data=b"{}"))

    with_store(tmp_path, story)


def test_room_that_was_cleared_is_used_again(tmp_path: Path) -> None:
    """The file has an upper bound, and forgetting makes it count."""
    clock = WallClock()

    async def story(store: JobStore) -> None:
        await store._write(lambda db: db.execute("PRAGMA max_page_count = 100").fetchall())
        for _ in range(10):
            await store.create(new_job())
            (job,) = await store.claim(1)
            assert await store.succeed(job.id, job.lease, JobOutcome(data=bytes(150_000)))
            clock.now += 100
            await store.forget()

    with_store(tmp_path, story, limits=StoreLimits(keep_seconds=60), clock=clock)


def test_reads_do_not_wait_for_writes(tmp_path: Path) -> None:
    """A poll must not stand behind somebody's 40 MB."""

    async def story(store: JobStore) -> None:
        job, _ = await store.create(new_job())
        loop, hold = asyncio.get_running_loop(), asyncio.Event()

        def slow(db: object) -> None:
            asyncio.run_coroutine_threadsafe(hold.wait(), loop).result(10)

        writing = asyncio.ensure_future(store._write(slow))
        found = await asyncio.gather(*(store.get("ann", job.id) for _ in range(20)))
        assert {one.id for one in found} == {job.id}
        assert not writing.done()
        hold.set()
        await writing

    with_store(tmp_path, story)


def test_the_caller_who_leaves_takes_nobody_along(tmp_path: Path) -> None:
    """A cancelled submission may or may not be kept; its neighbours are."""

    async def story(store: JobStore) -> None:
        tasks = [asyncio.ensure_future(store.create(new_job(b"%d" % n))) for n in range(10)]
        await asyncio.sleep(0)
        tasks[4].cancel()
        others = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(one, tuple) for one in others) == 9

    with_store(tmp_path, story)


def test_a_closed_store_answers(tmp_path: Path) -> None:
    """A route that comes too late in a shut-down gets an answer, not an endless wait."""

    async def story() -> None:
        store = JobStore(tmp_path)
        store.close()
        for late in (store.create(new_job()), store.get("ann", "id")):
            with pytest.raises(ServingError) as caught:
                await late
            assert caught.value.code == "shutting_down"

    asyncio.run(story())


def test_thousands_of_jobs_are_no_slow_start(tmp_path: Path) -> None:
    """After a crash work goes on within three seconds; most of that is for the model."""

    async def story(store: JobStore) -> None:
        await asyncio.gather(*(store.create(new_job(bytes(2000), f"{n % 9}")) for n in range(3000)))
        assert len(await store.claim(1500)) == 1500

    limits = StoreLimits(max_live=3000)
    with_store(tmp_path, story, limits=limits)
    started = time.monotonic()
    with JobStore(tmp_path, limits):
        took = time.monotonic() - started
    assert took < 3
