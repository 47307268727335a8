"""``Body``: a caller's request body, looked into as far as its beginning and passed on as it comes.

It is held in full only where it is short; and it knows whether any of it has been given to a server, which
decides whether the request may be tried elsewhere.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import orjson

from api.body import Receive
from core.errors import RequestError

PEEK: Final = 64 * 1024  # bytes; a body up to here can be sent again

_STALL_SECONDS: Final = 30.0
# A body that a server waits for takes a place there, so it must come at a pace: no slower in any piece.
_PACE_BYTES: Final = 64 * 1024
_PACE_SECONDS: Final = 5.0
_IN_JSON: Final = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"')
_IN_FORM: Final = re.compile(rb'name="model"\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,200})\r\n')
_NESTS: Final = ("input", "params", "openai_input")


class Body:
    """``gone``: the caller closed the connection. ``sent``: a server was given some of it.

    fault: what is wrong with it, found while it was passed on.
    declared: its length in bytes, None where it comes in chunks. limit: most bytes.
    """

    def __init__(self, receive: Receive, declared: int | None, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._held: list[bytes] = []
        self._size = 0
        self._more = declared != 0
        self._tell: Callable[[], object] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._drawn = False  # more was read than is held
        self.declared = declared
        self.gone = False
        self.sent = False
        self.fault: RequestError | None = None
        if declared is not None and declared > limit:
            raise self._too_large()

    @property
    def empty(self) -> bool:
        return not self._more and self._size == 0

    @property
    def complete(self) -> bool:
        """All of it is held."""
        return not self._more and not self._drawn

    @property
    def read(self) -> bool:
        """Nothing more is to come."""
        return not self._more

    @property
    def repeatable(self) -> bool:
        """It can still be given to a server from its first byte on."""
        return not self._drawn

    async def peek(self, most: int = PEEK) -> bytes:
        """Its beginning: at least ``most`` bytes, or all. Raises ``RequestError``."""
        while self._more and self._size < most and not self.gone:
            self._held.append(await self._next())
        return self._held[0] if len(self._held) == 1 else b"".join(self._held)

    async def chunks(self) -> AsyncIterator[bytes]:
        """For a server. Raises ``RequestError`` where the caller is too slow or sends too much."""
        self.sent = True
        for chunk in self._held:
            if chunk:
                yield chunk
        clock = asyncio.get_running_loop().time
        waited, mark = 0.0, self._size  # the server's own pauses are not the caller's
        while self._more and not self.gone:
            self._drawn = True
            began = clock()
            chunk = await self._next(_PACE_SECONDS - waited)
            waited += clock() - began
            if self.gone:
                raise ConnectionError("the caller left")  # so that what was sent is no complete request
            if self._size - mark >= _PACE_BYTES:
                waited, mark = 0.0, self._size
            yield chunk

    async def _next(self, seconds: float = _STALL_SECONDS) -> bytes:
        try:
            async with asyncio.timeout(seconds):
                message = await self._receive()
        except TimeoutError:
            self.fault = RequestError(
                "request_timeout", "the body comes too slowly, or stands still; send it faster or smaller"
            )
            raise self.fault from None
        if message["type"] == "http.disconnect":
            self.gone = True
            return b""
        chunk: bytes = message.get("body", b"")
        self._more = message.get("more_body", False)
        self._size += len(chunk)
        if self._size > self._limit:
            self.fault = self._too_large()
            raise self.fault
        if not self._more:
            self._watch()
        return chunk

    async def whole(self, limit: int) -> bytes:
        """All of it. Raises ``RequestError`` ``body_too_large`` for more than ``limit`` bytes."""
        self._limit = min(limit, self._limit)
        return await self.peek(self._limit + 1)

    def tell_when_gone(self, tell: Callable[[], object]) -> None:
        """Call ``tell`` when the caller closes the connection after all of the body was read."""
        self._tell = tell
        if not self._more:
            self._watch()

    def stop_watching(self) -> None:
        self._tell = None
        if self._watching is not None:
            self._watching.cancel()

    def _watch(self) -> None:
        if self._tell is not None and self._watching is None:
            self._watching = asyncio.ensure_future(self._until_gone())

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._tell is not None:
            self._tell()

    def _too_large(self) -> RequestError:
        return RequestError(
            "body_too_large", f"the body is over the limit of {self._limit} bytes; send smaller images"
        )


def model_in(beginning: bytes, content_type: str, *, complete: bool) -> str | None:
    """The model that a request names, as far as its beginning tells; None leaves it to the server."""
    if content_type.startswith("multipart/"):
        found = _IN_FORM.search(beginning)
        return found[1].decode("utf-8", "replace").strip() or None if found else None
    if not complete:
        found = _IN_JSON.search(beginning)
        return found[1].decode("utf-8", "replace") if found else None
    if b'"model"' not in beginning:
        return None
    try:
        value: Any = orjson.loads(beginning)
    except orjson.JSONDecodeError:
        return None  # the server will say so
    return _model_of(value)


def _model_of(value: Any) -> str | None:
    while isinstance(value, dict):
        for name in ("model", "model_id"):  # the second is the vision routes' word
            if isinstance(model := value.get(name), str) and model:
                return model
        value = next((value[name] for name in _NESTS if name in value), None)
    return None
