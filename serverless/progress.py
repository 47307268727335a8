"""Progress of one job, told at most once a second and never after its answer.

The SDK's own ``progress_update`` posts from a thread that nobody waits for; an update that lands
after the result re-opens the job on the platform. Here the sender is ended before the result leaves.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import TracebackType

from core.result import Progress

LAST_SEND_SECONDS = 5.0

Send = Callable[[dict[str, object]], Awaitable[None]]


class ProgressFeed:
    """An async context around a job's run; the object itself is the job's ``on_progress``.

    send:     posts one update. Its failures are its own affair: progress is a courtesy.
    interval: seconds between updates; a job shorter than this posts none.
    """

    def __init__(self, send: Send, interval: float) -> None:
        self._send = send
        self._interval = interval
        self._latest: Progress | None = None
        self._sending = False
        self._ended = False

    def __call__(self, progress: Progress) -> None:
        """Called on the device thread: one assignment, no lock, nothing of the loop is touched."""
        self._latest = progress

    async def __aenter__(self) -> "ProgressFeed":
        self._sender = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended = True
        if self._sending:
            # A request cut off in flight may still arrive; one that was answered cannot.
            await asyncio.wait({self._sender}, timeout=LAST_SEND_SECONDS)
        self._sender.cancel()
        await asyncio.wait({self._sender})

    async def _run(self) -> None:
        told: Progress | None = None
        while not self._ended:
            await asyncio.sleep(self._interval)
            latest = self._latest
            if latest is None or latest == told:
                continue
            told = latest
            self._sending = True
            with contextlib.suppress(Exception):
                await self._send({"state": latest.state, "step": latest.step, "steps": latest.steps})
            self._sending = False
