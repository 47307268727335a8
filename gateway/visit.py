"""``Visit``: one HTTP request, from its first byte to its answer's last.

An answer that a server breaks off is broken off here as well, so that nobody takes it for a whole one.
"""

import asyncio
import logging
import re
import secrets
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from starlette.types import Receive, Scope, Send

from api.exchange import request_id
from core.errors import CapacityError, ExecutionError, RequestError, ServingError, UpstreamError
from gateway.asking import Ask, CutOff, Reply
from gateway.body import Body
from gateway.headers import back, is_loop, value_of
from gateway.refusals import BROKEN, refuse, reply, reworded
from gateway.relay import Failure, Held
from gateway.routes import PUBLIC, Kind, kind_of

if TYPE_CHECKING:
    from gateway.app import Gateway

log = logging.getLogger("batchmux.gateway")

_SANE_PATH: Final = re.compile(r"[A-Za-z0-9_./:@~-]{1,200}")
_REFUSAL_BYTES: Final = 64 * 1024
_COPIED: Final = (b"retry-after", b"x-should-retry", b"x-request-id", b"www-authenticate")


class Visit:
    """One HTTP request."""

    def __init__(self, gateway: "Gateway", scope: Scope, receive: Receive, send: Send) -> None:
        self._gateway = gateway
        self._options = gateway.options
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = time.monotonic()
        self._headers = scope["headers"]
        self._id = request_id(value_of(self._headers, b"x-request-id"), secrets.token_hex(8))
        target = scope.get("raw_path") or scope["path"].encode()
        query = scope.get("query_string", b"")
        self._target = (target + b"?" + query if query else target).decode("latin-1")
        self._path: str = self._target.partition("?")[0]
        self._status = 0
        self._sent = 0
        self._code = ""
        self._server = ""
        self._kind = kind_of(scope["method"], self._path)

    async def answer(self) -> None:
        counted = self._kind in (Kind.WORK, Kind.GENERATE)
        if counted:
            self._gateway.counts.arrived()
        try:
            await self._answer_or_refuse()
        finally:
            seconds = time.monotonic() - self._started
            if counted:
                self._gateway.counts.answered(self._status, seconds)
            self._tell(seconds)

    async def _answer_or_refuse(self) -> None:
        try:
            owner = self._enter()
            limited = self._scope["method"] == "POST" and self._kind is not Kind.JOB
            turn = self._gateway.limits.turn(owner or self._client) if limited else nullcontext()
            with turn:
                await self._dispatch()
        except Failure as failure:
            await self._refuse(failure.error, failure.sentence)
        except ServingError as error:
            await self._refuse(error, None)
        except Exception:
            log.exception("request=%s failed in a way nobody foresaw", self._id)
            if not self._status:
                fault = ExecutionError("pipeline_error", "the gateway failed; its operator can look it up")
                await self._refuse(fault, None)
            # Else a broken transfer: nobody can tell what the answer would have been.

    def _enter(self) -> str:
        """Who it is. Raises ``RequestError`` for whoever may not enter and for what has been here before."""
        if is_loop(self._headers, self._options.own_id):
            raise UpstreamError(
                "upstream_error", "this request came through this gateway before; its servers lead back to it"
            )
        if not self._path.startswith("/") or _climbs(self._path):
            raise RequestError("not_found", "no such path here")
        if self._gateway.admin.owns(self._path):
            return self._gateway.admin.owner(self._headers)
        public = self._path in PUBLIC or self._path.startswith("/files/")
        return "" if public else self._options.keys.owner(self._headers)

    async def _dispatch(self) -> None:
        length = value_of(self._headers, b"content-length")
        chunked = bool(value_of(self._headers, b"transfer-encoding"))
        declared = int(length) if length else None if chunked else 0
        body = Body(self._receive, declared, self._options.max_body_bytes)
        method = self._scope["method"]
        if self._gateway.admin.owns(self._path):
            await self._pass_on(await self._gateway.admin.answer(method, self._path, await body.whole(2**16)))
        elif self._path in PUBLIC and method in ("GET", "HEAD"):
            await self._pass_on(await self._gateway.own.answer(self._path))
        elif self._gateway.draining and self._kind in (Kind.WORK, Kind.GENERATE):
            raise CapacityError("shutting_down", "this gateway is shutting down; ask again", retry_after=5)
        else:
            ask = Ask(
                method=method,
                target=self._target,
                headers=self._headers,
                body=body,
                request_id=self._id,
                client=self._client,
                scheme=self._scope.get("scheme", "http"),
            )
            await self._unless_gone(body, ask)

    async def _unless_gone(self, body: Body, ask: Ask) -> None:
        """The exchange, ended as soon as the caller closes the connection: the server sees it closed, too."""
        task = asyncio.current_task()
        assert task is not None
        body.tell_when_gone(task.cancel)
        try:
            await self._exchange(ask)
        except asyncio.CancelledError:
            if not body.gone:
                raise
            task.uncancel()
            self._status, self._code = self._status or 499, "cancelled"
        except Failure:
            if not body.gone:
                raise
            self._status, self._code = 499, "cancelled"
        finally:
            body.stop_watching()

    async def _exchange(self, ask: Ask) -> None:
        held = await self._gateway.relay.send(ask)
        self._server = held.upstream.name
        try:
            if self._kind is Kind.GENERATE and held.reply.status >= 400 and held.reply.status != 422:
                await self._reword(held)
            held.passing()
            await self._pass_on(held.reply)
        except CutOff:
            self._code = "upstream_error"
            await held.done(cut=True)
            if not self._status:
                fault = UpstreamError("upstream_error", "the server's answer broke off")
                raise Failure(fault, BROKEN) from None
            # The last message is never sent, so the HTTP server closes the connection: a broken transfer.
        except BaseException:
            await held.done(left=True)
            raise
        else:
            await held.done()

    async def _reword(self, held: Held) -> None:
        told = held.reply
        kept = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in told.headers
            if name.lower() in _COPIED
        }
        content = await told.whole(_REFUSAL_BYTES)
        held.reply = reply(reworded(told.status, content), told.status, kept)
        held.reply.close = told.close

    async def _pass_on(self, told: Reply) -> None:
        headers = back(told.headers, status=told.status, request_id=self._id, own_id=self._options.own_id)
        if self._options.cors_origins:
            headers = [pair for pair in headers if not pair[0].startswith(b"access-control-")]
        # The first bytes are waited for, so that a server that breaks off before them can be told of.
        chunks = told.chunks
        first = await anext(chunks, b"") if self._scope["method"] != "HEAD" else b""
        length = value_of(headers, b"content-length")
        if first and length == str(len(first)):
            self._status = told.status
            await self._send({"type": "http.response.start", "status": told.status, "headers": headers})
            self._sent = len(first)
            await self._send({"type": "http.response.body", "body": first})
            return
        self._status = told.status
        await self._send({"type": "http.response.start", "status": told.status, "headers": headers})
        if first:
            self._sent += len(first)
            await self._send({"type": "http.response.body", "body": first, "more_body": True})
            async for chunk in chunks:
                self._sent += len(chunk)
                await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})

    async def _refuse(self, error: ServingError, sentence: str | None) -> None:
        self._code = error.code
        detail = sentence if self._kind is Kind.GENERATE else None
        told = refuse(error, self._path, self._id, detail=detail)
        if error.code in ("request_timeout", "body_too_large"):
            told.headers.append((b"connection", b"close"))  # what is left of the body may never come
        await self._pass_on(told)

    @property
    def _client(self) -> str:
        client = self._scope.get("client")
        return str(client[0]) if client else ""

    def _tell(self, seconds: float) -> None:
        pairs: dict[str, Any] = {
            "request": self._id,
            "method": self._scope["method"],
            "path": self._path if _SANE_PATH.fullmatch(self._path) else "?",
            "server": self._server,
            "status": self._status,
            "code": self._code or ("ok" if self._status < 400 else "error"),
            "out": self._sent,
            "ms": f"{seconds * 1000:.0f}",
        }
        level = logging.DEBUG if self._path in PUBLIC else logging.INFO
        log.log(level, "%s", " ".join(f"{name}={value}" for name, value in pairs.items() if value != ""))


def _climbs(path: str) -> bool:
    """Whether a server, or a proxy before it, may take the path for another one than was looked at here."""
    return not {".", ".."}.isdisjoint(unquote(path).replace("\\", "/").split("/"))
