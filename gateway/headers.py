"""Headers on their way through: what is for one connection only stays behind, what identifies goes on.

Sources: RFC 9110, section 7.6 (hop-by-hop fields and Via), and w3.org/TR/trace-context, whose ``traceparent``
passes like every other end-to-end field.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

Header = tuple[bytes, bytes]

_HOP_BY_HOP: Final = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
_REMADE: Final = frozenset({b"host", b"expect", b"via", b"x-request-id", b"x-forwarded-host"})
_CREDENTIALS: Final = frozenset({b"authorization", b"x-api-key", b"cookie"})
_PSEUDONYM: Final = re.compile(rb"batchmux-gateway-([0-9a-f]{16})")

NO_BODY: Final = (204, 304)  # whatever length they name

MOST_GATEWAYS: Final = 4  # one behind the other; more is a circle through processes of one gateway


def end_to_end(headers: Iterable[Header]) -> Iterator[Header]:
    """Without what is for this connection alone, named or by custom. Names come in any case."""
    listed = [(name.lower(), value) for name, value in headers]
    named = {
        token.strip().lower()
        for name, value in listed
        if name == b"connection"
        for token in value.split(b",")
    }
    return ((name, value) for name, value in listed if name not in _HOP_BY_HOP and name not in named)


def is_loop(headers: Iterable[Header], own_id: str) -> bool:
    """Whether a request has been here before."""
    seen = [found for name, value in headers if name == b"via" for found in _PSEUDONYM.findall(value)]
    return own_id.encode() in seen or len(seen) >= MOST_GATEWAYS


def value_of(headers: Iterable[Header], name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in headers if key == name), "")


def onward(
    headers: Iterable[Header],
    *,
    own_id: str,
    request_id: str,
    client: str,
    scheme: str,
    keep_host: bool,
    keep_credentials: bool,
) -> list[tuple[str, str]]:
    """What a server is sent.

    keep_host: the caller's, by which the server makes the addresses in its answers.
    keep_credentials: false where they were meant for somebody else.
    """
    listed = list(headers)
    host, via = value_of(listed, b"host"), value_of(listed, b"via")
    sent = [
        (name.decode("latin-1"), _as_written(value))
        for name, value in end_to_end(listed)
        if name not in _REMADE and (keep_credentials or name not in _CREDENTIALS)
    ]
    sent.append(("x-request-id", request_id))
    sent.append(("via", f"{via}, " * bool(via) + f"1.1 batchmux-gateway-{own_id}"))
    if client:
        sent.append(("x-forwarded-for", client))
    sent.append(("x-forwarded-proto", scheme))
    if host:
        sent.append(("x-forwarded-host", host))
        if keep_host:
            sent.append(("host", host))
    return sent


def _as_written(value: bytes) -> str:
    """aiohttp encodes in UTF-8: what was UTF-8 arrives byte for byte, and what was not, readable."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def back(headers: Iterable[Header], *, status: int, request_id: str, own_id: str) -> list[Header]:
    """What the caller is sent; our own HTTP server writes the date."""
    dropped = {b"date", b"via"} | ({b"content-length"} if status in NO_BODY else set())
    answered = [(name, value) for name, value in end_to_end(headers) if name not in dropped]
    if not any(name == b"x-request-id" for name, _ in answered):
        answered.append((b"x-request-id", request_id.encode("latin-1")))
    answered.append((b"via", f"1.1 batchmux-gateway-{own_id}".encode()))
    return answered
