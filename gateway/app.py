"""``Gateway``: the ASGI application in front of several servers, and how it starts and ends.

``gateway.app:app`` is made of the settings when it is first asked for; importing this reads no environment.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from api.rate_limits import RateLimits
from gateway.admin import Admin
from gateway.fleet import Fleet
from gateway.options import GatewayOptions
from gateway.own import Counts, OwnPages
from gateway.relay import Relay
from gateway.visit import Visit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


log = logging.getLogger("batchmux.gateway")


class Gateway:
    def __init__(self, options: GatewayOptions) -> None:
        self.options = options
        self.fleet = Fleet(
            [options.upstream(url) for url in options.servers],
            options.policy,
            max_waiting=options.max_waiting,
            wait_seconds=options.timeout,
        )
        self.relay = Relay(self.fleet)
        self.counts = Counts()
        self.own = OwnPages(self.fleet, self.counts, lambda: self.draining)
        self.admin = Admin(self.fleet, options)
        self.limits = RateLimits(per_minute=options.requests_per_minute, at_once=options.requests_at_once)
        self._watching: asyncio.Task[None] | None = None
        self._idle: list[Callable[[], object]] = []
        self.draining = False
        self.open = 0  # requests without a whole answer

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # there is none here
        else:
            self.start()
            self.open += 1
            try:
                await Visit(self, scope, receive, send).answer()
            finally:
                self.open -= 1
                if not self.open:
                    for tell in self._idle:
                        tell()

    def start(self) -> None:
        """Begin to watch the servers; on the event loop, and again without effect."""
        if self._watching is None:
            self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while True:
            try:
                await self.admin.catch_up()
                await self.fleet.look()
            except Exception:  # unwatched, a server that was out would stay out
                log.exception("the servers could not be looked at")
            await asyncio.sleep(self.options.probe_every)

    async def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self.fleet.close()

    def drain(self, tell: Callable[[], object]) -> None:
        """Refuse new work; ``tell`` is called when nothing is under way any more, perhaps at once."""
        self.draining = True
        self._idle.append(tell)
        if not self.open:
            tell()

    async def _live(self, receive: "Receive", send: "Send") -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return


def create_app(options: GatewayOptions) -> "tuple[ASGIApp, Gateway]":
    """The application, and the gateway inside it."""
    gateway = Gateway(options)
    if not options.cors_origins:
        return gateway, gateway
    from starlette.middleware.cors import CORSMiddleware

    app = CORSMiddleware(
        gateway,
        allow_origins=options.cors_origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["*"],
    )
    return app, gateway


def from_settings() -> "tuple[ASGIApp, Gateway]":
    """What the environment asks for. Raises ``settings.BadSettings``."""
    import logging

    import settings
    from gateway.options import refused, warnings

    config = settings.load()
    wrong = list(refused(config))
    if wrong:
        raise settings.BadSettings("\n".join(wrong))
    logging.basicConfig(level=config.log_level, format="%(levelname)-7s| %(name)s | %(message)s")
    for sentence in warnings(config):
        logging.getLogger("batchmux.gateway").warning(sentence)
    return create_app(GatewayOptions.of(config))


def __getattr__(name: str) -> Any:
    """``app``, for servers that are told ``gateway.app:app``; one in each process."""
    if name == "app":
        globals()["app"] = from_settings()[0]
        return globals()["app"]
    raise AttributeError(name)
