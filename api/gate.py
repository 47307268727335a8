"""``Gate``: nobody comes past it without a key, except to what is declared public.

It stands before the routing, so a path that nobody declared is closed as well.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.keys import KeyRing
from api.rate_limits import RateLimits
from api.refusing import refused
from api.visit import visit_of
from core.errors import ServingError


@dataclass(frozen=True, kw_only=True, slots=True)
class AccessOptions:
    """cors_origins: whose pages may call from a browser; "*" is every page."""

    keys: KeyRing = field(default_factory=KeyRing)
    requests_per_minute: int | None = None
    requests_at_once: int | None = None
    cors_origins: tuple[str, ...] = ()


class Gate:
    """ASGI middleware, inside the one that opens the visit."""

    def __init__(self, app: ASGIApp, *, options: AccessOptions) -> None:
        self._app = app
        self._keys = options.keys
        self._limits = RateLimits(per_minute=options.requests_per_minute, at_once=options.requests_at_once)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # there is none here
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            await self._pass(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        visit = visit_of(scope)
        turn: AbstractContextManager[None] = nullcontext()
        try:
            if not visit.public:
                visit.owner = self._keys.owner(scope["headers"])
            if visit.makes_work:
                turn = self._limits.turn(visit.owner or _address(scope))
            turn.__enter__()
        except ServingError as error:
            await refused(error, Request(scope))(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            turn.__exit__(None, None, None)


def _address(scope: Scope) -> str:
    """Without keys there is nothing else to tell callers apart by."""
    return scope["client"][0] if scope.get("client") else ""
