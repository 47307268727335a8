"""The SDK's real job loop, made to leave in good order; its fetchers are injected, as it allows locally."""

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from runpod.serverless.modules import rp_scale
from runpod.serverless.modules.worker_state import JobsProgress

from serverless.draining import draining, misfit

Job = dict[str, Any]


class Platform:
    """Hands out what is queued; ``body_gate`` holds an answer back between its headers and its body."""

    def __init__(self) -> None:
        self.queued: list[Job] = []
        self.arrived = asyncio.Event()  # something is queued
        self.polling = asyncio.Event()
        self.poll_closed = asyncio.Event()
        self.handing_out = asyncio.Event()
        self.body_gate = asyncio.Event()
        self.body_gate.set()
        self.started = asyncio.Event()
        self.finish = asyncio.Event()
        self.done: list[str] = []
        self.one_done = asyncio.Event()
        self.failures: list[Exception] = []
        self.failed = asyncio.Event()  # all failures were met

    def add(self, *ids: str) -> None:
        self.queued += [{"id": job_id, "input": {}} for job_id in ids]
        self.arrived.set()

    async def fetch(self, session: Any, free: int) -> list[Job]:
        if self.failures:
            failure = self.failures.pop(0)
            if not self.failures:
                self.failed.set()
            raise failure
        async with session.get(f"take {free}") as jobs:
            await self.body_gate.wait()
            taken: list[Job] = jobs
            return taken

    def get(self, url: str) -> "_Poll":
        return _Poll(self, int(url.split()[1]))

    async def run(self, session: Any, config: Job, job: Job) -> None:
        self.started.set()
        await self.finish.wait()
        self.done.append(job["id"])
        self.one_done.set()

    async def stops(self, session: Any) -> list[str]:
        await asyncio.Event().wait()
        return []


class _Poll:
    def __init__(self, platform: Platform, most: int) -> None:
        self._platform, self._most = platform, most

    async def __aenter__(self) -> list[Job]:
        platform = self._platform
        if not platform.queued:
            platform.polling.set()
        try:
            await platform.arrived.wait()
        except asyncio.CancelledError:
            platform.poll_closed.set()
            raise
        taken, platform.queued = platform.queued[: self._most], platform.queued[self._most :]
        if not platform.queued:
            platform.arrived.clear()
        platform.handing_out.set()
        return taken

    async def __aexit__(self, *details: object) -> None: ...


@dataclass
class Worker:
    running: "asyncio.Task[None]"
    signalled: asyncio.Event


Script = Callable[[Platform, Worker], Awaitable[None]]


def loop(
    script: Script, *, slots: int = 2, limit: float = 30.0, on_limit: Callable[[], object] = int
) -> Platform:
    """Runs the draining scaler beside ``script``, which is to make it leave."""

    async def main() -> Platform:
        JobsProgress().clear()
        platform = Platform()
        config = {
            "concurrency_modifier": lambda _: slots,
            "jobs_fetcher": platform.fetch,
            "jobs_handler": platform.run,
            "stop_signals_fetcher": platform.stops,
        }
        scaler = draining(rp_scale.JobScaler, limit, on_limit)(config)

        async def run_with_platform() -> None:
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, scaler._leave)
            await asyncio.gather(
                scaler.get_jobs(platform), scaler.run_jobs(platform), scaler.monitor_stop_signals(platform)
            )

        async with asyncio.timeout(20):
            running = asyncio.create_task(run_with_platform())
            await script(platform, Worker(running, scaler._shutdown_event))
            await running
        return platform

    return asyncio.run(main())


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_installed_sdk_is_the_expected_one() -> None:
    """Otherwise the worker runs without all that follows here."""
    assert misfit(rp_scale.JobScaler) is None


class WithoutEvent(rp_scale.JobScaler):  # type: ignore[misc]
    def __init__(self, config: Job) -> None:
        super().__init__(config)
        del self._shutdown_event


class WithOtherFetch(rp_scale.JobScaler):  # type: ignore[misc]
    async def get_jobs(self, session: Any, batch: int) -> None: ...


class WithOtherStart(rp_scale.JobScaler):  # type: ignore[misc]
    def __init__(self, config: Job, loop: object) -> None: ...


@pytest.mark.parametrize(
    ("scaler", "words"),
    [
        (WithoutEvent, "no _shutdown_event"),
        (WithOtherFetch, "get_jobs is not"),
        (WithOtherStart, "cannot be built"),
    ],
)
def test_another_sdk_is_recognised(scaler: type[Any], words: str) -> None:
    """A release that works differently must not be half patched."""
    assert words in (misfit(scaler) or "")


def test_an_idle_worker_leaves_at_once() -> None:
    """The SDK alone waits for its polls, up to 90 s, and is killed in the middle of nothing."""

    async def script(platform: Platform, worker: Worker) -> None:
        await platform.polling.wait()
        terminate()
        await asyncio.wait_for(asyncio.shield(worker.running), 1.5)

    loop(script)


def test_a_job_that_comes_late_stays_queued() -> None:
    """The poll is closed, so nothing can be handed to it."""

    async def script(platform: Platform, worker: Worker) -> None:
        platform.add("first")
        await platform.started.wait()
        await platform.polling.wait()  # for the second slot
        terminate()
        await platform.poll_closed.wait()
        platform.add("late")
        platform.finish.set()

    platform = loop(script)
    assert platform.done == ["first"]
    assert [job["id"] for job in platform.queued] == ["late"]


def test_the_sdk_alone_takes_a_late_job_and_never_runs_it() -> None:
    """What the test above would show without the mending."""

    async def main() -> Platform:
        JobsProgress().clear()
        platform = Platform()
        config = {
            "concurrency_modifier": lambda _: 2,
            "jobs_fetcher": platform.fetch,
            "jobs_handler": platform.run,
        }
        scaler = rp_scale.JobScaler(config)
        taking = asyncio.create_task(scaler.get_jobs(platform))
        running = asyncio.create_task(scaler.run_jobs(platform))
        await platform.polling.wait()
        scaler.handle_shutdown(signal.SIGTERM, None)
        await asyncio.wait_for(running, 5)
        platform.add("late")
        platform.finish.set()
        await asyncio.wait_for(taking, 5)
        return platform

    platform = asyncio.run(main())
    assert platform.queued == []
    assert platform.done == []


def test_jobs_whose_handing_out_has_begun_are_run() -> None:
    """The platform counts them as this worker's from the first byte of its answer."""

    async def script(platform: Platform, worker: Worker) -> None:
        platform.body_gate.clear()
        await platform.polling.wait()
        platform.add("a", "b")
        await platform.handing_out.wait()
        terminate()
        platform.finish.set()
        await asyncio.wait({worker.running}, timeout=0.3)  # the running loop has ended its first pass by now
        platform.body_gate.set()

    assert sorted(loop(script).done) == ["a", "b"]


def test_a_free_slot_is_filled_at_once() -> None:
    """The SDK alone sleeps a second whenever all slots were taken: here, 12 s in all."""

    async def script(platform: Platform, worker: Worker) -> None:
        platform.finish.set()
        platform.add(*(f"job-{number}" for number in range(12)))
        async with asyncio.timeout(5):
            while len(platform.done) < 12:
                platform.one_done.clear()
                await platform.one_done.wait()
        terminate()

    loop(script, slots=1)


def test_a_failing_poll_is_repeated_after_a_pause_and_does_not_hold_up_leaving() -> None:
    """Without a pause, a platform that is away would cost a whole core."""
    refused = Exception("too many requests")
    refused.status = 429  # type: ignore[attr-defined]

    async def script(platform: Platform, worker: Worker) -> None:
        platform.failures = [OSError("connection refused"), refused]
        await asyncio.wait_for(platform.failed.wait(), 5)
        assert not platform.polling.is_set()
        terminate()
        await asyncio.wait_for(asyncio.shield(worker.running), 1.5)

    loop(script)


def test_the_limit_is_kept_while_names_are_looked_up() -> None:
    """Slow look-ups take every thread of the loop's own pool, for as long as a name server pleases."""
    looked_up = threading.Event()

    async def script(platform: Platform, worker: Worker) -> None:
        main_loop = asyncio.get_running_loop()
        on_end.append(lambda: main_loop.call_soon_threadsafe(platform.finish.set))
        main_loop.set_default_executor(ThreadPoolExecutor(1))
        looking_up = asyncio.ensure_future(asyncio.to_thread(looked_up.wait, 15))
        platform.add("slow")
        await platform.started.wait()
        terminate()
        try:
            await asyncio.wait_for(asyncio.shield(worker.running), 5)
        finally:
            looked_up.set()
            await looking_up

    on_end: list[Callable[[], object]] = []
    assert loop(script, limit=0.1, on_limit=lambda: on_end[0]()).done == ["slow"]


@pytest.mark.parametrize("how", ["limit", "second signal"])
def test_what_takes_too_long_is_ended(how: str) -> None:
    """By answering it, which is what ``on_limit`` does; the platform's patience ends in SIGKILL."""
    ended: list[str] = []

    async def script(platform: Platform, worker: Worker) -> None:
        main_loop = asyncio.get_running_loop()
        on_end.append(lambda: main_loop.call_soon_threadsafe(platform.finish.set))
        platform.add("slow")
        await platform.started.wait()
        terminate()
        if how == "second signal":
            await worker.signalled.wait()
            assert not ended
            terminate()
        await worker.running

    on_end: list[Callable[[], object]] = []

    def on_limit() -> None:
        ended.append(how)
        on_end[0]()

    platform = loop(script, limit=0.2 if how == "limit" else 30, on_limit=on_limit)
    assert ended == [how]
    assert platform.done == ["slow"]
