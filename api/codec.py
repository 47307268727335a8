"""The one pool of threads in which pictures are decoded and encoded.

Work that answers a finished job always gets in; new input is refused when too much waits already.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from core.errors import CapacityError, ExecutionError, RequestError

T = TypeVar("T")


class Term:
    """How long an answer may be written: while its caller waits, and to ``until`` by the monotonic clock.

    ``check`` it in the codec's thread between two pieces of long work; nothing else can end a thread's.
    """

    def __init__(self, until: float | None = None) -> None:
        self.until = until
        self.over = False

    def check(self) -> None:
        """Raises ``RequestError`` ``cancelled`` and ``ExecutionError`` ``deadline_exceeded``."""
        if self.over:
            raise RequestError("cancelled", "the request was cancelled")
        if self.until is not None and time.monotonic() > self.until:
            raise ExecutionError(
                "deadline_exceeded", "the answer was not written within its time; allow more or ask for less"
            )


class Codec:
    """Use from one event loop; close it when no call is under way.

    threads:     calls that run at once.
    max_waiting: calls to ``admit`` under way or waiting before further ones are refused.
    """

    def __init__(self, threads: int, max_waiting: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="codec")
        self._max_waiting = max_waiting
        self._admitted = 0

    async def admit(self, call: Callable[[], T]) -> T:
        """Run work for new input. Raises ``CapacityError`` ``queue_full`` at once when too much waits.

        Cancelling drops a call that has not started.
        """
        if self._admitted >= self._max_waiting:
            raise CapacityError(
                "queue_full",
                f"{self._max_waiting} requests are being read already; try again shortly",
                retry_after=1,
            )
        self._admitted += 1
        try:
            return await self.finish(call)
        finally:
            self._admitted -= 1

    async def finish(self, call: Callable[[], T]) -> T:
        """Run work for an answer; never refused, since the number of accepted jobs bounds it."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def write(self, call: Callable[[Term], T], until: float | None) -> T:
        """As ``finish``, for work that may take long: its ``Term`` is over when this is cancelled."""
        term = Term(until)
        try:
            return await self.finish(partial(call, term))
        finally:
            term.over = True

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
