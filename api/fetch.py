"""The guarded fetch: the only way in which a caller's URL makes this server open a connection.

A host is resolved once, every address is checked, and the checked addresses are dialled; each
redirect starts over. aiohttp is imported on first use, so that importing this module stays light.
"""

import asyncio
import importlib
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from api.addresses import is_public
from api.budget import Lease
from api.names import Names
from core.errors import CapacityError, RequestError, UpstreamError

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.abc import ResolveResult
    from yarl import URL

MAX_REDIRECTS: Final = 3
MAX_URL_LENGTH: Final = 8192
_PORTS: Final = {"http": 80, "https": 443}
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_CHUNK: Final = 64 * 1024

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class GuardedFetch:
    """Bytes of public http(s) URLs.

    max_bytes:   of one answer; counted while it streams.
    timeout:     seconds in all: names, connections, redirects and the body.
    allow_hosts: ``host:port`` pairs that may be private and on any port, as written in the URL.
    max_fetches: under way at once before further ones are refused.
    resolve:     a seam for tests.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        timeout: float,
        allow_hosts: Collection[str] = (),
        max_fetches: int = 64,
        resolve: Resolve | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._allow_hosts = frozenset(host.lower() for host in allow_hosts)
        self._max_fetches = max_fetches
        self._fetches = 0
        self._aiohttp: Any = None
        self._names = Names()
        self._resolve = resolve or self._names

    def close(self) -> None:
        """Look-ups that wait are dropped; one under way ends by itself."""
        self._names.close()

    async def __call__(self, url: str, lease: Lease) -> bytes:
        """Raises ``RequestError``: ``url_not_allowed``, ``image_fetch_failed``, ``image_fetch_timeout``
        or ``image_too_large``; and ``CapacityError`` where ``lease`` says so, or when too many are
        under way."""
        if self._fetches >= self._max_fetches:
            raise CapacityError(
                "queue_full",
                f"{self._max_fetches} images are being fetched already; try again shortly",
                retry_after=1,
            )
        self._fetches += 1
        try:
            return await self._fetch(url, lease)
        finally:
            self._fetches -= 1

    async def _fetch(self, url: str, lease: Lease) -> bytes:
        aiohttp = await self._library()
        try:
            async with asyncio.timeout(self._timeout):
                return await self._follow(aiohttp, url, lease)
        except TimeoutError:
            raise RequestError(
                "image_fetch_timeout", f"the image did not arrive within {self._timeout:g} s"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise RequestError("image_fetch_failed", "the image could not be fetched") from None

    async def put(self, url: str, body: bytes, content_type: str) -> None:
        """Send a file under the same guard, following no redirect. ``url`` may be signed: it leaves as it is.

        Raises ``RequestError`` ``url_not_allowed``, and ``UpstreamError`` unless the server took it.
        """
        await self._send("PUT", url, {"Content-Type": content_type}, body, whose="file's")

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> None:
        """As ``put``, for webhooks."""
        await self._send("POST", url, headers, body, whose="webhook's")

    async def _send(self, method: str, url: str, headers: Mapping[str, str], body: bytes, whose: str) -> None:
        aiohttp = await self._library()
        try:
            async with asyncio.timeout(self._timeout), AsyncExitStack() as stack:
                addresses = await self._checked_addresses(_url(url))
                session = await stack.enter_async_context(_session(aiohttp, addresses))
                sending = session.request(
                    method, _parse(url, encoded=True), data=body, headers=headers, allow_redirects=False
                )
                status = (await stack.enter_async_context(sending)).status
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
            raise UpstreamError("upstream_error", f"the {whose} server cannot be reached") from None
        if not 200 <= status < 300:
            raise UpstreamError("upstream_error", f"the {whose} server answered {status}")

    async def _library(self) -> Any:
        if self._aiohttp is None:  # not sys.modules: another thread may be half-way through it
            self._aiohttp = await asyncio.to_thread(importlib.import_module, "aiohttp")
        return self._aiohttp

    async def _follow(self, aiohttp: Any, text: str, lease: Lease) -> bytes:
        target = _url(text)
        for _ in range(MAX_REDIRECTS + 1):
            addresses = await self._checked_addresses(target)
            async with AsyncExitStack() as stack:
                session = await stack.enter_async_context(_session(aiohttp, addresses))
                response = await stack.enter_async_context(session.get(target, allow_redirects=False))
                if response.status not in _REDIRECTS:
                    return await self._body(response, lease)
                location = response.headers.get("Location", "")
                if not location or len(location) > MAX_URL_LENGTH:
                    raise RequestError("image_fetch_failed", "the image's server redirects to nowhere")
                target = _url(str(target.join(_parse(location))))
        raise RequestError(
            "image_fetch_failed", f"more than {MAX_REDIRECTS} redirects; link the image itself"
        )

    async def _checked_addresses(self, target: "URL") -> Sequence[str]:
        """Where to dial. One private address among several is one too many."""
        host, port = target.raw_host or "", target.port or 0
        written = f"[{host}]" if ":" in host else host
        allowed = f"{written}:{port}".lower() in self._allow_hosts
        if not allowed and port != _PORTS[target.scheme]:
            raise _refusal()
        addresses = await self._resolve(host, port)
        if not addresses or not (allowed or all(is_public(address) for address in addresses)):
            raise _refusal()
        return addresses

    async def _body(self, response: "aiohttp.ClientResponse", lease: Lease) -> bytes:
        if response.status != 200:
            raise RequestError("image_fetch_failed", f"the image's server answered {response.status}")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise RequestError("image_fetch_failed", "the image's server sent a compressed answer unasked")
        received = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK):
            if len(received) + len(chunk) > self._max_bytes:
                raise RequestError(
                    "image_too_large", f"the image file is over the limit of {self._max_bytes} bytes"
                )
            lease.take(len(chunk))
            received += chunk
        return bytes(received)


def _session(aiohttp: Any, addresses: Sequence[str]) -> Any:
    class Checked(aiohttp.abc.AbstractResolver):  # type: ignore[misc]
        """Answers with what was checked, whatever is asked."""

        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> "list[ResolveResult]":
            return [
                {
                    "hostname": host,
                    "host": address,
                    "port": port,
                    "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                    "proto": socket.IPPROTO_TCP,
                    "flags": socket.AI_NUMERICHOST,
                }
                for address in addresses
            ]

        async def close(self) -> None: ...

    def dial(info: Any) -> socket.socket:
        family, kind, protocol, _, (address, *_) = info
        if address not in addresses:  # the last line: nothing unchecked is ever dialled
            raise _refusal()
        return socket.socket(family, kind, protocol)

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            resolver=Checked(), use_dns_cache=False, force_close=True, socket_factory=dial
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,  # no proxies, no .netrc
        headers={"Accept-Encoding": "identity", "Accept": "image/*", "User-Agent": "batchmux"},
        timeout=aiohttp.ClientTimeout(),  # ours is around everything
    )


def _url(text: str) -> "URL":
    if len(text) > MAX_URL_LENGTH or "\\" in text or not text.isprintable() or " " in text:
        raise _refusal()
    target = _parse(text)
    if target.scheme not in _PORTS or not target.raw_host or target.raw_user or target.raw_password:
        raise _refusal()
    return target


def _parse(text: str, *, encoded: bool = False) -> "URL":
    from yarl import URL  # comes with aiohttp: the parser that dials is the parser that checks

    try:
        return URL(text, encoded=encoded)
    except ValueError:
        raise _refusal() from None


def _refusal() -> RequestError:
    """One text for every reason, so that it cannot be used to look around."""
    return RequestError("url_not_allowed", "the URL must be a public http or https address")
