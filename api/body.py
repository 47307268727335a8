"""A request's body from the socket to plain Python values, refusing early what would cost too much.

Parsing happens on the event loop: what could make that slow (millions of values or strings) is
refused by a scan that looks at no more than it allows.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

import orjson

from api.budget import Lease
from core.errors import RequestError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MAX_VALUES: Final = 20_000  # commas, and quotation marks, in one body


class ClientGone(Exception):
    """The caller closed the connection before its request was complete."""


async def read_body(
    receive: Receive, headers: Mapping[str, str], lease: Lease, *, limit: int, seconds: float
) -> bytes:
    """The whole body. ``limit`` in bytes is checked against the declared length before anything is read.

    Raises ``RequestError`` ``body_too_large``, ``request_timeout`` (``seconds`` in all) or
    ``unsupported_media_type``, ``CapacityError`` from ``lease``, and ``ClientGone``.
    """
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError("unsupported_media_type", "compressed bodies are not accepted; send it plain")
    declared = headers.get("content-length")
    if declared is not None:
        # The digits are the server's concern; here only their worth counts.
        if int(declared) > limit:
            raise _too_large(limit)
        lease.take(int(declared))
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk: bytes = message.get("body", b"")
                more = message.get("more_body", False)
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                if declared is None:
                    lease.take(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise RequestError(
            "request_timeout", f"the body did not arrive within {seconds:g} s; send it faster or smaller"
        ) from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def parse_json(body: bytes) -> Any:
    """Strict JSON: no NaN or Infinity, no duplicate keys, no lone surrogates, no deep nesting.

    Raises ``RequestError`` ``invalid_json``, which tells the place but never the text.
    """
    strings = _count_strings(body)
    position = -1
    for _ in range(MAX_VALUES + 1):
        position = body.find(b",", position + 1)
        if position < 0:
            break
    else:
        raise _too_many()
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(
            "invalid_json", f"the body is not valid JSON near character {error.pos}; check quotes and commas"
        ) from None
    if _strings_in(value) != strings:  # orjson keeps the last of equal keys, and drops the others' strings
        raise RequestError("invalid_json", "the body names a key twice; name it once")
    return value


def _count_strings(body: bytes) -> int:
    """String literals of a JSON text, keys included; found by ``bytes.find``, so long ones cost little."""
    count = 0
    looks = 0
    position = body.find(b'"')
    while position >= 0:
        count += 1
        while True:
            looks += 1
            if looks > MAX_VALUES:
                raise _too_many()
            position = body.find(b'"', position + 1)
            if position < 0:
                return count  # unterminated: the parser says so with more words
            before = position - 1
            while body[before] == 0x5C:
                before -= 1
            if (position - before) % 2:  # an even run of backslashes leaves the quotation mark alone
                break
        position = body.find(b'"', position + 1)
    return count


def _strings_in(value: object) -> int:
    """String literals in a parsed JSON text, keys included."""
    count = 0
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            count += 1
        elif isinstance(item, dict):
            count += len(item)
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return count


def _too_large(limit: int) -> RequestError:
    return RequestError("body_too_large", f"the body is over the limit of {limit} bytes; send smaller images")


def _too_many() -> RequestError:
    return RequestError("invalid_json", f"the body holds over {MAX_VALUES} values; no request needs as many")
