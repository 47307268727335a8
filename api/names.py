"""Host names to addresses, in threads of their own.

The system's resolver blocks for seconds on a name whose servers do not answer. An event loop lends it
two threads (uvloop) or those that everything else uses too (asyncio), so a few such names would stall
every caller.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

THREADS = 16


class Names:
    """Use from one event loop. ``getaddrinfo`` is a seam for tests."""

    def __init__(
        self, threads: int = THREADS, getaddrinfo: Callable[..., Sequence[Any]] = socket.getaddrinfo
    ) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="names")
        self._getaddrinfo = getaddrinfo

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """Addresses of a name or literal, in any spelling that the system's dialler would accept too.

        Raises ``OSError`` when there is none. Cancelling drops a look-up that has not started.
        """
        look_up = partial(self._getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._pool, look_up)
        return [str(entry[4][0]) for entry in found]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
