"""``JobService``: the job store, who carries its jobs out and who tells of their ends."""

import asyncio
import base64
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from api.job_file import UnusableStore
from api.job_record import StoreLimits
from api.job_runner import JobRunner, Work
from api.job_store import JobStore
from api.webhooks import Post, Render, WebhookSender

log = logging.getLogger("batchmux.jobs")

_PREFIX = "whsec_"


class JobService:
    """``start`` on the event loop; ``drain`` from any thread."""

    def __init__(self, runner: JobRunner, sender: WebhookSender) -> None:
        self.runner = runner
        self._sender = sender
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sending: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.runner.start()
        self._sending = asyncio.ensure_future(self._sender.run())

    def drain(self, seconds: float) -> "Future[None]":
        """Take no new work from now on; done when what ran has ended or is queued for the next process."""
        if self._loop is None:
            nothing: Future[None] = Future()
            nothing.set_result(None)
            return nothing
        return asyncio.run_coroutine_threadsafe(self._drain(seconds), self._loop)

    async def _drain(self, seconds: float) -> None:
        await self.runner.drain(seconds)
        if self._sending is not None:
            self._sending.cancel()  # what is owed stays owed
            await asyncio.wait((self._sending,))


@contextmanager
def job_service(
    folder: Path,
    limits: StoreLimits,
    dialects: Mapping[str, Work],
    webhooks: Mapping[str, Render],
    *,
    post: Post,
    secret: bytes | None = None,
    concurrency: int = 8,
) -> Iterator[JobService | None]:
    """None where the folder cannot be used: then the log says why, the routes of jobs refuse, and all
    others work."""
    try:
        store = JobStore(folder, limits)
    except UnusableStore as error:
        log.error("no asynchronous jobs are taken: %s", error)
        yield None
        return
    with store:
        yield JobService(
            JobRunner(store, dialects, concurrency=concurrency),
            WebhookSender(store, post, webhooks, secret=secret),
        )


def secret_of(text: str) -> bytes:
    """The key that signs: ``whsec_`` and base64 as standardwebhooks.com writes it, or any text."""
    if text.startswith(_PREFIX):
        return base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    return text.encode()
