"""One HTTP connection that cannot be held open for nothing: uvicorn's own, with limits it lacks.

uvicorn bounds idle keep-alive only. A caller that dribbles headers, keeps sending a body that was
refused, or never reads its answer would stay for ever; here each of them is dropped. A caller who closes only
its sending side counts as gone, too, as with most servers: its job is cancelled.
"""

import asyncio
import re
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.body import STEP

MAX_HEADER_BYTES = 64 * 1024

# Bytes of a body taken before anybody asks for them. So many of a declared length are counted against
# the budget for bodies when that happens; what comes in chunks is not.
_READ_AHEAD_DECLARED = STEP
_READ_AHEAD = 64 * 1024

# Java's own client and curl offer HTTP/2 with their first request. A server may go on without it, but the
# parser drops the body of a request that offers another protocol: it is not shown such an offer.
_OFFERS_HTTP2 = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*\r\n", re.IGNORECASE)
_OFFER = re.compile(rb"\r\n(?:upgrade|http2-settings):[^\r\n]*", re.IGNORECASE)

_FRAMING = (b"content-length", b"transfer-encoding")

# A reader hears at least this often, in seconds, that its caller is still sending.
_BEAT = 0.2

_CROWDED = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"retry-after: 1\r\ncontent-length: %d\r\n\r\n%s"
)
_CROWDED_BODY = b'{"detail":"too many connections","error":"too many connections","code":"queue_full"}'


_received = memoryview(bytearray(2**20))


class _Pieces:
    """Stands in for the ``bytearray`` that uvicorn grows: pieces are copied once, when they are read."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def __iadd__(self, piece: bytes) -> "_Pieces":
        self._pieces.append(piece)
        self._size += len(piece)
        return self

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)


class GuardedProtocol(HttpToolsProtocol, asyncio.BufferedProtocol):
    """Limits are class attributes, since uvicorn makes the instances: subclass to set them.

    header_seconds:  from the first wait for a request until its headers are complete.
    linger_seconds:  for the rest of a body whose request is answered already.
    stall_seconds:   without the caller taking a byte of its answer.
    """

    header_seconds: ClassVar[float] = 30.0
    linger_seconds: ClassVar[float] = 5.0
    stall_seconds: ClassVar[float] = 30.0
    max_connections: ClassVar[int] = 1000

    _deadline: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _in_headers = False
    _header_bytes = 0
    _in_body = False
    _read_ahead = 0
    _last_beat = 0.0
    _field_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.write(_CROWDED % (len(_CROWDED_BODY), _CROWDED_BODY))
            transport.close()
            return
        self._close_in(self.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        if self._stall is not None:
            self._stall.cancel()
        super().connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _received

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(_received[:nbytes])

    def data_received(self, data: bytes | memoryview) -> None:
        if self.transport.is_closing():
            return
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._close_in(self.header_seconds)
        if self._in_headers:
            self._header_bytes += len(data)
        elif not self._in_body:
            data = _without_offer(data)
        super().data_received(data)  # type: ignore[arg-type]
        if self._in_headers and self._header_bytes > MAX_HEADER_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self._field_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        """Here for what comes in one read, complete; in ``data_received`` for what never gets complete."""
        self._field_bytes += size
        if self._field_bytes > MAX_HEADER_BYTES:
            raise ValueError("too many header bytes")  # which the parser passes on: 400, and the end

    def on_headers_complete(self) -> None:
        framing = [(name, value) for name, value in self.headers if name in _FRAMING]
        if self.parser.should_upgrade() and any(value != b"0" for _, value in framing):
            raise ValueError("the parser would take the body for the next request")
        self._in_headers, self._header_bytes = False, 0
        self._in_body = True
        declared = any(name == b"content-length" for name, _ in self.headers)
        self._read_ahead = _READ_AHEAD_DECLARED if declared else _READ_AHEAD
        self._cancel_deadline()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """uvicorn's, but the reader is not woken for every packet."""
        if self.cycle.response_complete:
            return
        if not self.cycle.body:
            self.cycle.body = _Pieces()  # type: ignore[assignment]
        self.cycle.body += body
        now = self.loop.time()
        full = len(self.cycle.body) >= self._read_ahead
        if full:
            self.flow.pause_reading()
        if full or now - self._last_beat >= _BEAT:
            self._last_beat = now
            self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        self._in_body = False
        if self.cycle.response_complete:
            self._cancel_deadline()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and self.cycle.response_complete and not self.transport.is_closing():
            self._close_in(self.linger_seconds)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _watch_reader(self, pending: int) -> None:
        self._stall = self.loop.call_later(self.stall_seconds, self._check_reader, pending)

    def _check_reader(self, before: int) -> None:
        pending = self.transport.get_write_buffer_size()
        if pending >= before:
            self.transport.abort()
        else:
            self._watch_reader(pending)

    def _close_in(self, seconds: float) -> None:
        self._cancel_deadline()
        self._deadline = self.loop.call_later(seconds, self.transport.close)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _without_offer(data: bytes | memoryview) -> bytes | memoryview:
    """What begins with a request, whose whole head is in it: else the parser meets the offer, and refuses."""
    if not _OFFERS_HTTP2.search(data[:MAX_HEADER_BYTES]):
        return data
    head, end, rest = bytes(data).partition(b"\r\n\r\n")
    return _OFFER.sub(b"", head + b"\r\n")[:-2] + end + rest if end else data


def guarded(**limits: Any) -> type[GuardedProtocol]:
    """The protocol with other limits."""
    return type("GuardedProtocol", (GuardedProtocol,), limits)
