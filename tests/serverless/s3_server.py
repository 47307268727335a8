"""A bucket on loopback that checks Signature Version 4 of presigned URLs, as S3-compatible servers do.

Source: AWS, "Authenticating Requests: Using Query Parameters (AWS Signature Version 4)".
"""

import hashlib
import hmac
from urllib.parse import quote, urlsplit

from aiohttp import web

KEY_ID, SECRET = "test-key-id", "test-secret"


class S3Server:
    """Use as an async context. ``objects`` maps paths to (content type, body)."""

    def __init__(self, status: int = 200) -> None:
        self.objects: dict[str, tuple[str, bytes]] = {}
        self._status = status

    async def __aenter__(self) -> "S3Server":
        app = web.Application(client_max_size=100_000_000)
        app.router.add_put("/{path:.*}", self._put)
        app.router.add_get("/{path:.*}", self._get)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.host, self.endpoint = f"{host}:{port}", f"http://{host}:{port}"
        return self

    async def __aexit__(self, *details: object) -> None:
        await self._runner.cleanup()

    async def _put(self, request: web.Request) -> web.Response:
        if not is_signed(request):
            return web.Response(status=403)
        if self._status == 200:
            self.objects[request.path] = (request.content_type, await request.read())
        return web.Response(status=self._status)

    async def _get(self, request: web.Request) -> web.Response:
        if not is_signed(request):
            return web.Response(status=403)
        content_type, body = self.objects[request.path]
        return web.Response(body=body, content_type=content_type)


def is_signed(request: web.Request) -> bool:
    query = dict(request.query)
    given = query.pop("X-Amz-Signature", "")
    canonical_query = "&".join(
        f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(query.items())
    )
    signed = query.get("X-Amz-SignedHeaders", "")
    headers = "".join(f"{name}:{request.headers.get(name, '').strip()}\n" for name in signed.split(";"))
    path = quote(request.path, safe="/~")
    canonical = "\n".join((request.method, path, canonical_query, headers, signed, "UNSIGNED-PAYLOAD"))
    scope = query.get("X-Amz-Credential", "").removeprefix(f"{KEY_ID}/")
    text = "\n".join(
        (
            "AWS4-HMAC-SHA256",
            query.get("X-Amz-Date", ""),
            scope,
            hashlib.sha256(canonical.encode()).hexdigest(),
        )
    )
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), given)


def endpoint_parts(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}", parts.path
