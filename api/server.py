"""Serving an application until a signal says stop: drain while still answering, then leave.

uvicorn is imported when serving starts, so that importing this module costs nothing.
"""

import asyncio
import ctypes
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import uvicorn

log = logging.getLogger("batchmux.server")

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_FORCED_GRACE = 1.0  # seconds for refusals to reach their callers after a second signal


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptions:
    """drain_seconds: for accepted work to finish after the first SIGTERM or SIGINT, its answers included.

    answer_seconds: for answers still being encoded or written, when the drain itself took it all.
    header_seconds, linger_seconds, stall_seconds, max_connections: see ``api.connection``.
    keep_alive_seconds: idle time of a connection; above the 60 s of usual load balancers, so that
        they never send into one that is being closed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    drain_seconds: float = 60.0
    answer_seconds: float = 5.0
    header_seconds: float = 30.0
    linger_seconds: float = 5.0
    stall_seconds: float = 30.0
    keep_alive_seconds: int = 75
    max_connections: int = 1000
    backlog: int = 2048


def serve(
    app: Any,
    options: ServerOptions,
    *,
    drain: Callable[[float], object],
    on_listening: Callable[[], None] | None = None,
) -> None:
    """Serve the ASGI application ``app``; returns once a first signal's drain is over and answers are out.

    drain:        called in a thread with ``drain_seconds``: refuses new work at once and returns when
                  accepted work is done or the time is over (the rest is answered ``shutting_down``).
                  Probes and refusals are answered meanwhile. A second signal calls it again with 0;
                  if that does not end the first within a second, the process ends with status 1.
    on_listening: called on the event loop once connections are accepted.
    """
    _keep_freed_memory()
    make_server(app, options, drain=drain, on_listening=on_listening).run()


def _keep_freed_memory() -> None:
    """Let glibc's malloc use again the megabytes that every request allocates and frees.

    By default it returns them to the system each time, and getting them back is a page fault for every
    4 KiB: a quarter of the CPU time of a request beside its codecs. Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_M_TRIM_THRESHOLD, 256 * 2**20)


def make_server(
    app: Any,
    options: ServerOptions,
    *,
    drain: Callable[[float], object],
    on_listening: Callable[[], None] | None = None,
) -> "uvicorn.Server":
    """What ``serve`` runs, for callers who bring their own socket or thread."""
    import uvicorn

    from api.connection import guarded

    class Server(uvicorn.Server):
        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            self._signals = 0
            # Two threads of its own: one for each signal, whatever fills the loop's default ones.
            self._draining = ThreadPoolExecutor(2, thread_name_prefix="drain")
            self._steps: set[asyncio.Task[None]] = set()

        async def serve(self, sockets: list[socket.socket] | None = None) -> None:
            self._loop = asyncio.get_running_loop()
            await super().serve(sockets)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if on_listening is not None:
                on_listening()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # Not uvicorn's own: that one would stop listening first and die of the signal in the end.
            self._loop.call_soon_threadsafe(self._on_signal, signal.Signals(sig).name)

        def _on_signal(self, name: str) -> None:
            self._signals += 1
            if self._signals == 1:
                log.info("%s: draining for up to %g s; once more ends at once", name, options.drain_seconds)
                step = self._drain_then_exit()
            else:
                log.warning("%s again: ending now", name)
                step = self._end_now()
            self._steps.add(asyncio.ensure_future(step))

        async def _drain_then_exit(self) -> None:
            end = time.monotonic() + options.drain_seconds
            try:
                await self._loop.run_in_executor(self._draining, drain, options.drain_seconds)
            finally:
                left = max(options.answer_seconds, end - time.monotonic())
                self.config.timeout_graceful_shutdown = math.ceil(left)
                self.should_exit = True

        async def _end_now(self) -> None:
            refusing = self._loop.run_in_executor(self._draining, drain, 0.0)
            await asyncio.wait((refusing,), timeout=_FORCED_GRACE / 2)
            await asyncio.sleep(_FORCED_GRACE / 2)
            logging.shutdown()
            os._exit(1)  # whatever still runs is what the second signal was about

    return Server(
        uvicorn.Config(
            app,
            host=options.host,
            port=options.port,
            http=guarded(
                header_seconds=options.header_seconds,
                linger_seconds=options.linger_seconds,
                stall_seconds=options.stall_seconds,
                max_connections=options.max_connections,
            ),
            ws="none",
            interface="asgi3",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            access_log=False,  # the application writes one line per request itself
            log_config=None,
            backlog=options.backlog,
            timeout_keep_alive=options.keep_alive_seconds,
            timeout_graceful_shutdown=math.ceil(options.answer_seconds),
        )
    )
