"""Telling callers' servers that their jobs are done: at least once, signed, and not for ever.

Headers and signature are those of the Standard Webhooks specification 1.0 (standardwebhooks.com), so
that receivers can check them with its libraries; the id stays the same from try to try.
"""

import asyncio
import base64
import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping

from api.job_outbox import OwedCall
from api.job_record import JobRecord
from api.job_store import JobStore
from core.errors import RequestError, ServingError

log = logging.getLogger("batchmux.jobs")

# ``post(url, headers, body)`` raises ``ServingError`` unless the server took it.
Post = Callable[[str, Mapping[str, str], bytes], Awaitable[None]]
Render = Callable[[JobRecord], bytes]

_LOOK_SECONDS = 1.0


class WebhookSender:
    """Use from one event loop; cancel ``run`` to end it, what is owed stays owed.

    renders: dialect -> the JSON body that tells of a job.
    secret:  signs; None sends unsigned.
    tries:   of one call before it is given up.
    delay:   seconds to the second try, doubled for each further one; longer than ``post`` ever takes.
    at_once: calls under way.
    """

    def __init__(
        self,
        store: JobStore,
        post: Post,
        renders: Mapping[str, Render],
        *,
        secret: bytes | None = None,
        tries: int = 6,
        delay: float = 15.0,
        at_once: int = 16,
    ) -> None:
        self._store = store
        self._post = post
        self._renders = renders
        self._secret = secret
        self._tries = tries
        self._delay = delay
        self._at_once = at_once
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        try:
            while True:
                await self.send_due()
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            for call in self._calls:
                call.cancel()

    async def send_due(self) -> None:
        """Begin the calls that are due, as many as may be under way."""
        free = self._at_once - len(self._calls)
        if free <= 0:
            return
        try:
            owed = await self._store.take_owed(free, self._delay)
        except ServingError as error:
            log.error("webhooks cannot be read from the job store: %s", error)
            return
        for call in owed:
            sending = asyncio.ensure_future(self._send(call))
            self._calls.add(sending)
            sending.add_done_callback(self._calls.discard)

    async def idle(self) -> None:
        """Until no call is under way."""
        while self._calls:
            await asyncio.wait(self._calls)

    async def _send(self, call: OwedCall) -> None:
        try:
            job = await self._store.get(call.owner, call.id)
            assert job.webhook is not None
            body = self._renders[job.dialect](job)
            await self._post(job.webhook, self._headers(job.id, body), body)
        except ServingError as error:
            # A refused address stays refused; everything else may mend itself.
            if isinstance(error, RequestError) or call.tries >= self._tries:
                log.warning("webhook of job %s given up after %d tries: %s", call.id, call.tries, error)
                await self._settle(call)
        except Exception:
            log.exception("webhook of job %s cannot be written", call.id)
            await self._settle(call)
        else:
            await self._settle(call)

    async def _settle(self, call: OwedCall) -> None:
        try:
            await self._store.settle(call.id)
        except ServingError as error:  # then it is sent once more
            log.error("webhook of job %s cannot be settled: %s", call.id, error)

    def _headers(self, id: str, body: bytes) -> dict[str, str]:
        sent_at = str(int(self._store.clock()))
        headers = {"Content-Type": "application/json", "webhook-id": id, "webhook-timestamp": sent_at}
        if self._secret is not None:
            headers["webhook-signature"] = signature(self._secret, id, sent_at, body)
        return headers


def signature(secret: bytes, id: str, timestamp: str, body: bytes) -> str:
    signed = b".".join((id.encode(), timestamp.encode(), body))
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
