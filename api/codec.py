"""The one pool of threads in which pictures are decoded and encoded.

Work that answers a finished job always gets in; new input is refused when too much waits already.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from core.errors import CapacityError

T = TypeVar("T")


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

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
