"""The SDK's job loop, made to leave in good order. Knows nothing of images, models or answers.

Facts about ``rp_scale.JobScaler`` of runpod 1.12 that this mends:

- After SIGTERM it waits for its open long polls, up to 90 s, and a job that one of them brings in
  that time is taken from the platform's queue and never run.
- When every slot is taken it sleeps a whole second before it looks again, so fast jobs leave the
  device idle; here the next poll starts when a slot becomes free.
- A poll that fails (connection refused) is repeated without a pause.
"""

import asyncio
import inspect
import logging
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

log = logging.getLogger(__name__)

POLL_SECONDS = 90.0  # as the SDK's jobs_fetcher_timeout
LAST_BODY_SECONDS = 30.0  # for jobs whose handing out has begun when SIGTERM comes
REFUSED_PAUSE = 5.0  # as the SDK after a 429
FAILED_PAUSE = 1.0

_ATTRIBUTES = ("_shutdown_event", "jobs_queue", "job_progress", "jobs_fetcher", "current_concurrency")
_METHODS = {
    "run": ["self"],
    "get_jobs": ["self", "session"],
    "run_jobs": ["self", "session"],
    "monitor_stop_signals": ["self", "session"],
    "handle_job": ["self", "session", "job"],
    "set_scale": ["self"],
    "is_alive": ["self"],
    "kill_worker": ["self"],
}


def misfit(scaler: type[Any]) -> str | None:
    """What of the SDK's scaler is not as this module expects, or None when all is."""
    for name, parameters in _METHODS.items():
        method = getattr(scaler, name, None)
        if method is None or list(inspect.signature(method).parameters) != parameters:
            return f"{scaler.__name__}.{name} is not {name}({', '.join(parameters)})"
    try:
        instance = scaler({})
    except Exception as error:
        return f"{scaler.__name__} cannot be built from a config ({type(error).__name__})"
    missing = [name for name in _ATTRIBUTES if not hasattr(instance, name)]
    if missing:
        return f"{scaler.__name__} has no {', '.join(missing)}"
    if not isinstance(instance._shutdown_event, asyncio.Event):
        return f"{scaler.__name__}._shutdown_event is no asyncio.Event"
    return None


def draining(scaler: type[Any], limit: float, on_limit: Callable[[], object]) -> type[Any]:
    """A subclass of the SDK's scaler that stops taking jobs at once and finishes those it has.

    ``on_limit`` is called off the loop when they are not finished ``limit`` seconds after the first
    signal, or at a second signal; it must make the jobs end.
    """

    class DrainingScaler(scaler):  # type: ignore[misc]
        def __init__(self, config: dict[str, Any]) -> None:
            super().__init__(config)
            self._slot_freed = asyncio.Event()
            self._taking_ended = asyncio.Event()
            self._running_ended = asyncio.Event()
            # Not the loop's own pool: slow look-ups of names may hold every thread of that.
            self._limit_thread = ThreadPoolExecutor(1, thread_name_prefix="drain-limit")

        async def run(self) -> None:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._leave)
            await super().run()

        def _leave(self) -> None:
            loop = asyncio.get_running_loop()
            if self.is_alive():
                log.info("leaving: no new jobs, %d to finish", self.job_progress.get_job_count())
                self.kill_worker()
                loop.call_later(limit, self._give_up)
            else:
                self._give_up()

        def _give_up(self) -> None:
            self._limit_thread.submit(on_limit)

        async def get_jobs(self, session: Any) -> None:
            try:
                while self.is_alive():
                    await self.set_scale()
                    self._slot_freed.clear()
                    free = self.current_concurrency - self.job_progress.get_job_count()
                    if free > 0:
                        await self._take(session, free)
                    else:
                        await self._until_leaving(self._slot_freed.wait())
            finally:
                self._taking_ended.set()

        async def _take(self, session: Any, free: int) -> None:
            watched = _Watched(session)
            fetch = asyncio.ensure_future(self.jobs_fetcher(watched, free))
            await self._until_leaving(asyncio.wait({fetch}, timeout=POLL_SECONDS))
            if not fetch.done() and watched.answered:
                # The platform counts these jobs as ours: hear it out.
                await asyncio.wait({fetch}, timeout=LAST_BODY_SECONDS)
            if not fetch.done():
                fetch.cancel()
            await asyncio.wait({fetch})
            if fetch.cancelled():
                return
            error = fetch.exception()
            if error is not None:
                refused = getattr(error, "status", None) == 429
                if not refused:
                    log.error("could not ask for jobs: %s", type(error).__name__)
                await self._until_leaving(asyncio.sleep(REFUSED_PAUSE if refused else FAILED_PAUSE))
                return
            for job in fetch.result() or ():
                await self.jobs_queue.put(job)
                self.job_progress.add(job)

        async def _until_leaving(self, waited: Any) -> None:
            """Wait for ``waited`` or for the signal, whichever comes first."""
            tasks = {asyncio.ensure_future(waited), asyncio.ensure_future(self._shutdown_event.wait())}
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()

        async def run_jobs(self, session: Any) -> None:
            await super().run_jobs(session)
            await self._taking_ended.wait()
            await super().run_jobs(session)  # what the last poll still brought
            self._running_ended.set()

        async def handle_job(self, session: Any, job: dict[str, Any]) -> None:
            try:
                await super().handle_job(session, job)
            finally:
                self._slot_freed.set()

        async def monitor_stop_signals(self, session: Any) -> None:
            monitor = asyncio.ensure_future(super().monitor_stop_signals(session))
            await self._running_ended.wait()
            monitor.cancel()
            await asyncio.wait({monitor})

    return DrainingScaler


class _Watched:
    """A client session that remembers whether its one GET has been answered."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.answered = False

    def get(self, url: str) -> "_Watched":
        self._request = self._session.get(url)
        return self

    async def __aenter__(self) -> Any:
        response = await self._request.__aenter__()
        self.answered = True
        return response

    async def __aexit__(self, *details: object) -> None:
        await self._request.__aexit__(*details)
