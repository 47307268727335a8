"""``Upstream``: one server over HTTP. It refuses to know which server is asked, and whether to ask again.

A body is offered with ``Expect: 100-continue``: until the server asks for it nothing was executed there, so a
request that fails before may go elsewhere. Source: RFC 9110, section 10.1.1.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from gateway.asking import Ask, CutOff, Reply, Unanswered
from gateway.headers import NO_BODY, onward

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.connector import Connection

_CONNECT_SECONDS: Final = 10.0
_CONTINUE_SECONDS: Final = 1.0  # RFC 9110: a client does not wait for ever for a 100
_SILENT_SECONDS: Final = 5.0  # of a server that has answered 100 before
_HEALTH_BYTES: Final = 2**20
_READ_BYTES: Final = 32 * 1024  # ahead of a caller who reads slowly; twice as much at most
_SKIPPED: Final = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")  # aiohttp's own


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """As a probe saw it. state: ready | loading | draining | failed. waiting: all work there."""

    state: str
    loaded: tuple[str, ...] = ()
    waiting: float = 0.0
    body: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Connecting:
    """What every server is asked with. own_id: of this gateway, by which it knows its own requests."""

    own_id: str
    timeout: float = 300.0
    connect_seconds: float = _CONNECT_SECONDS
    continue_seconds: float = _CONTINUE_SECONDS
    silent_seconds: float = _SILENT_SECONDS
    probe_seconds: float = 5.0


def name_of(url: str) -> str:
    """Stands for a server where its address must not be told."""
    return hashlib.blake2b(url.encode(), digest_size=4).hexdigest()


class Upstream:
    """``name``: stands for it in answers and the log. ``key``: sent in place of the caller's own.

    Use from one event loop; ``close`` it there.
    """

    runpod = False

    def __init__(self, url: str, options: Connecting, *, key: str = "") -> None:
        self.url = url.rstrip("/")
        self.name = name_of(self.url)
        self.key = key
        self.options = options
        self._keep_host = urlsplit(self.url).scheme == "http"
        self._session: aiohttp.ClientSession | None = None
        self._habits = Habits()

    def takes(self, path: str) -> bool:
        return True

    async def ask(self, ask: Ask) -> Reply:
        """Its answer, once the headers are there. Raises ``Unanswered``."""
        headers = onward(
            ask.headers,
            own_id=self.options.own_id,
            request_id=ask.request_id,
            client=ask.client,
            scheme=ask.scheme,
            keep_host=self._keep_host,
            keep_credentials=not self.key,
        )
        if self.key:
            headers.append(("authorization", f"Bearer {self.key}"))
        return await self._exchange(ask, f"{self.url}{ask.target}", headers)

    async def _exchange(self, ask: Ask, url: str, headers: list[tuple[str, str]]) -> Reply:
        offered = not ask.body.empty
        try:
            async with asyncio.timeout(self.options.timeout):
                response = await self.session.request(
                    ask.method,
                    URL(url, encoded=True),
                    headers=headers,
                    data=ask.body.chunks() if offered else None,
                    expect100=offered,
                    allow_redirects=False,
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unanswered(type(error).__name__, unreached=True) from None
        except TimeoutError:
            raise Unanswered("timeout", silent=True) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unanswered(type(error).__name__) from None
        if not 200 <= response.status <= 599 or not _framed(ask.method, response):
            response.close()
            raise Unanswered("no final answer, or one whose end cannot be told")
        return Reply(
            status=response.status,
            headers=list(response.raw_headers),
            chunks=_chunks(response),
            close=_closing(response),
        )

    async def health(self) -> Health:
        """What it says of itself. Raises ``Unanswered``."""
        status, body = await self.get("/health")
        if status != 200 or not isinstance(body, dict):
            raise Unanswered(f"error_{status}")
        jobs, loaded = body.get("jobs"), body.get("loaded_models")
        # Servers of the text-to-image contract count in words of their own.
        counts = jobs if isinstance(jobs, dict) else body
        names = ("queued", "running") if counts is jobs else ("current_queue_size", "active_generations")
        ill = body.get("status") in ("unhealthy", "error")
        return Health(
            state=str(body.get("state") or ("failed" if ill else "ready")),
            loaded=tuple(map(str, loaded)) if isinstance(loaded, list) else (),
            waiting=sum(number(counts, name) for name in names),
            body=body,
        )

    async def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of a small answer, asked in our own name. Raises ``Unanswered``."""
        headers = {"Via": f"1.1 batchmux-gateway-{self.options.own_id}", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            async with (
                asyncio.timeout(self.options.probe_seconds),
                self.session.get(f"{self.url}{path}", headers=headers, allow_redirects=False) as response,
            ):
                content = await response.content.read(_HEALTH_BYTES)
                while not response.content.at_eof() and len(content) < _HEALTH_BYTES:
                    content += await response.content.read(_HEALTH_BYTES)
                return response.status, _json(content)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            raise Unanswered("unreachable", unreached=True) from None
        except TimeoutError:
            raise Unanswered("timeout", silent=True) from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise Unanswered("error") from None

    @property
    def session(self) -> aiohttp.ClientSession:
        """Made at first use, which is when there is a loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30, force_close=False),
                request_class=_offering(self.options, self._habits),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=_READ_BYTES,
                trust_env=False,
                skip_auto_headers=_SKIPPED,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self.options.connect_seconds, sock_read=self.options.timeout
                ),
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


@dataclass(slots=True)
class Habits:
    """continues: it has asked for a body with a 100 before, so silence in its place means trouble."""

    continues: bool = False


def _offering(options: Connecting, habits: Habits) -> type[aiohttp.ClientRequest]:
    class Offering(aiohttp.ClientRequest):
        """aiohttp's own, which would wait for a 100 for ever."""

        async def write_bytes(
            self, writer: "AbstractStreamWriter", conn: "Connection", content_length: int | None = None
        ) -> None:
            waiting = self._continue
            if waiting is not None:
                try:
                    writer.send_headers()
                    await writer.drain()
                except ConnectionError:  # an idle connection that was being closed; the reader hears of it
                    conn.close()
                    return
                seconds = options.silent_seconds if habits.continues else options.continue_seconds
                try:
                    await asyncio.wait((waiting,), timeout=seconds)
                except BaseException:  # answered without it: the server still reads this connection as a body
                    conn.close()
                    raise
                if waiting.done():
                    habits.continues = True
                elif habits.continues:
                    conn.close()  # the reader hears of it, and the body was never given away
                    return
                else:
                    waiting.set_result(True)
            await super().write_bytes(writer, conn, content_length)

    return Offering


def _framed(method: str, response: aiohttp.ClientResponse) -> bool:
    """Whether a cut would be seen: an answer that ends with the connection may end anywhere.

    Chunks tell the end only where they are the last coding: RFC 9112, section 6.3.
    """
    if method == "HEAD" or response.status in NO_BODY:
        return True
    codings = ",".join(response.headers.getall("Transfer-Encoding", ()))
    chunked = codings.rpartition(",")[2].strip().lower() == "chunked"
    return chunked or (not codings and "Content-Length" in response.headers)


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except (aiohttp.ClientError, OSError, TimeoutError):
        raise CutOff from None


def _closing(response: aiohttp.ClientResponse) -> Any:
    async def close() -> None:
        response.release() if response.content.at_eof() else response.close()

    return close


def _json(content: bytes) -> Any:
    import orjson

    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return None


def number(counts: Any, name: str) -> float:
    value = counts.get(name) if isinstance(counts, dict) else None
    return float(value) if isinstance(value, int | float) else 0.0
