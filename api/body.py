"""A request's body from the socket to plain Python values, refusing early what would cost too much.

Parsing happens on the event loop: what could make that slow (millions of values or strings) is
refused by a scan that looks at no more than it allows.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final

import orjson

from api.budget import Lease
from core.errors import RequestError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

LONG: Final = 65_536
MAX_VALUES: Final = 20_000  # commas, and quotation marks, in one body
MAX_REST: Final = 2**20  # bytes beside the long strings; the longest prompts need 0.1 MB of them
STEP: Final = 256 * 1024  # of a body, counted ahead of its arrival; what a connection may read ahead

# Of base64: + from System.Text.Json, = from Gson, / from PHP, and line breaks, which mean nothing.
_ESCAPES: Final = (
    *((escape, b"+") for escape in (b"\\u002B", b"\\u002b")),
    *((escape, b"=") for escape in (b"\\u003D", b"\\u003d")),
    (b"\\/", b"/"),
    (b"\\n", b""),
    (b"\\r", b""),
)
_PIECE: Final = 256 * 1024  # bytes between two looks at others' wishes
_BACKSLASH: Final = 0x5C


class ClientGone(Exception):
    """The caller closed the connection before its request was complete."""


async def read_body(
    receive: Receive,
    headers: Mapping[str, str],
    lease: Lease,
    *,
    limit: int,
    seconds: float,
    stall_seconds: float,
) -> bytes:
    """The whole body. ``limit`` in bytes is checked against the declared length before anything is read.

    Only what has arrived, and one ``STEP``, is held: a declaration alone keeps nobody else out.
    Raises ``RequestError`` ``body_too_large``, ``request_timeout`` (``seconds`` in all, or
    ``stall_seconds`` without a byte) or ``unsupported_media_type``, ``CapacityError`` from ``lease``,
    and ``ClientGone``.
    """
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError("unsupported_media_type", "compressed bodies are not accepted; send it plain")
    # The digits are the server's concern; here only their worth counts.
    declared = int(headers.get("content-length", 0))
    if declared > limit:
        raise _too_large(limit)
    lease.check(declared)
    held = min(declared, STEP)
    lease.take(held)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            more = True
            while more:
                async with asyncio.timeout(stall_seconds):
                    message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk: bytes = message.get("body", b"")
                more = message.get("more_body", False)
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                ahead = STEP if more and declared else 0
                wanted = max(size, min(size + ahead, declared))
                if wanted > held:
                    lease.take(wanted - held)
                    held = wanted
                chunks.append(chunk)
    except TimeoutError:
        raise RequestError(
            "request_timeout",
            f"the body did not arrive within {seconds:g} s, or stood still for {stall_seconds:g} s; "
            "send it faster or smaller",
        ) from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class LongText:
    """A long string of a body, left where it is: a megabyte of base64 need not become a ``str`` first.

    data:    its bytes between the quotation marks, unchecked.
    escaped: whether there are backslashes among them.
    """

    __slots__ = ("data", "escaped")

    def __init__(self, data: memoryview, *, escaped: bool = False) -> None:
        self.data = data
        self.escaped = escaped

    def base64(self) -> memoryview:
        """``data`` without the escapes that JSON writers put into base64.

        Raises ``ValueError`` on any other. Call it in a codec's thread: it works in pieces, so that the
        interpreter can attend to others in between.
        """
        if not self.escaped:
            return self.data
        pieces = []
        at = 0
        while at < len(self.data):
            piece = bytes(self.data[at : at + _PIECE])
            cut = piece.rfind(b"\\", _PIECE - 5)  # perhaps the first half of an escape
            if cut > 0:
                piece = piece[:cut]
            at += len(piece)
            if b"\\\\" in piece:
                raise ValueError
            for escape, meaning in _ESCAPES:
                piece = piece.replace(escape, meaning)
            if b"\\" in piece:
                raise ValueError
            pieces.append(piece)
        return memoryview(b"".join(pieces))


def parse_json(body: bytes) -> Any:
    """Strict JSON: no NaN or Infinity, no duplicate keys, no lone surrogates, no deep nesting.

    String values from ``LONG`` bytes on come as ``LongText``: whether their text is valid is found out
    by whoever reads it.
    Raises ``RequestError`` ``invalid_json``, which never repeats the text.
    """
    strings, spans = _find_strings(body)
    # Random, so that no body can name one of its own.
    lifted = {
        secrets.token_hex(16): LongText(memoryview(body)[a:b], escaped=body.find(b"\\", a, b) >= 0)
        for a, b in spans
    }
    rest = _without(body, spans, lifted) if spans else body
    if len(rest) > MAX_REST:
        raise RequestError(
            "invalid_json",
            f"the body holds over {MAX_REST} bytes beside its pictures; no request needs as many",
        )
    _refuse_many(rest)
    try:
        value = orjson.loads(rest)
    except orjson.JSONDecodeError:
        raise RequestError(
            "invalid_json", "the body is not valid JSON; check quotation marks, commas and encoding"
        ) from None
    if _put_back([value], lifted) != strings:
        # orjson keeps the last of equal keys, and with the others their strings are gone.
        raise RequestError("invalid_json", "the body names a key twice; name it once")
    return value


def _find_strings(body: bytes) -> tuple[int, list[tuple[int, int]]]:
    """How many string literals a JSON text has, keys included, and where the long ones are.

    All by ``bytes.find``, so that a long string costs next to nothing.
    """
    count = looks = 0
    spans: list[tuple[int, int]] = []
    start = body.find(b'"')
    while start >= 0:
        count += 1
        end = start
        while True:
            looks += 1
            if looks > MAX_VALUES:
                raise _too_many()
            since = end + 1
            end = body.find(b'"', since)
            if end < 0:
                return count, spans  # unterminated: the parser says so
            if body[end - 1] != _BACKSLASH:
                break
            part = body[since:end]
            if (len(part) - len(part.rstrip(b"\\"))) % 2 == 0:  # an even run leaves the mark alone
                break
        if end - start > LONG:
            spans.append((start + 1, end))
        start = body.find(b'"', end + 1)
    return count, spans


def _refuse_many(text: bytes) -> None:
    position = -1
    for _ in range(MAX_VALUES + 1):
        position = text.find(b",", position + 1)
        if position < 0:
            return
    raise _too_many()


def _without(body: bytes, spans: list[tuple[int, int]], names: Iterable[str]) -> bytes:
    parts = []
    copied = 0
    for (start, end), name in zip(spans, names, strict=True):
        parts += [body[copied:start], name.encode()]
        copied = end
    return b"".join((*parts, body[copied:]))


def _put_back(pending: list[Any], lifted: Mapping[str, LongText]) -> int:
    """Put long texts in their places; answers the number of string literals, keys included."""
    count = sum(isinstance(item, str) for item in pending)
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if not lifted.keys().isdisjoint(item):
                raise RequestError("invalid_json", f"a key is over the limit of {LONG} bytes; shorten it")
            count += len(item)
            places: Iterable[Any] = item.items()
        elif isinstance(item, list):
            places = enumerate(item)
        else:
            continue
        for place, inner in places:
            if isinstance(inner, str):
                count += 1
                if inner in lifted:
                    item[place] = lifted[inner]
            elif isinstance(inner, dict | list):
                pending.append(inner)
    return count


def _too_large(limit: int) -> RequestError:
    return RequestError("body_too_large", f"the body is over the limit of {limit} bytes; send smaller images")


def _too_many() -> RequestError:
    return RequestError("invalid_json", f"the body holds over {MAX_VALUES} values; no request needs as many")
