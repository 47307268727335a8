"""Who waits for news of which job, and how far those that run have come. In memory only."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from core.result import Progress


class Listener:
    """``rung`` is set by news; who has heard them clears it. ``over`` stays once no more are to come."""

    def __init__(self, progress: bool) -> None:
        self.rung = asyncio.Event()
        self.progress = progress
        self.over = False

    async def heard(self, seconds: float | None = None) -> bool:
        """Whether there are news within that time."""
        try:
            async with asyncio.timeout(seconds):
                await self.rung.wait()
        except TimeoutError:
            return False
        self.rung.clear()
        return True


class JobNews:
    """Use from one event loop."""

    def __init__(self) -> None:
        self._listeners: dict[str, set[Listener]] = {}
        self._progress: dict[str, Progress] = {}

    def progress(self, id: str) -> Progress | None:
        return self._progress.get(id)

    @contextmanager
    def listen(self, id: str, *, progress: bool = False) -> Iterator[Listener]:
        """Hear of the job's end, and with ``progress`` of every step as well."""
        listener = Listener(progress)
        self._listeners.setdefault(id, set()).add(listener)
        try:
            yield listener
        finally:
            others = self._listeners[id]
            others.discard(listener)
            if not others:
                del self._listeners[id]

    def moved(self, id: str, progress: Progress) -> None:
        self._progress[id] = progress
        for listener in self._listeners.get(id, ()):
            if listener.progress:
                listener.rung.set()

    def left(self, id: str) -> None:
        """The job no longer runs: it has to be asked for again, and what it had done may be undone."""
        self._progress.pop(id, None)
        for listener in self._listeners.get(id, ()):
            listener.rung.set()

    def silence(self) -> None:
        """Nothing more will be heard of any job."""
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.over = True
                listener.rung.set()
