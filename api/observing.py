"""``Observing``: opens the visit of every HTTP request and tells of it: one log line, one count."""

import json
import logging
import re
from collections.abc import Sequence

from starlette.datastructures import MutableHeaders
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dialect import Endpoint
from api.metrics import Metrics
from api.visit import Visit, open_visit

log = logging.getLogger("batchmux.api")

_LONGEST_PROMPT = 500
_SANE_PATH = re.compile(r"[A-Za-z0-9_./:@~-]{1,200}")


class Observing:
    """ASGI middleware. It tells before the last byte goes out, so whoever has an answer finds it counted."""

    def __init__(
        self, app: ASGIApp, *, endpoints: Sequence[Endpoint], metrics: Metrics, log_prompts: bool
    ) -> None:
        self._app = app
        self._paths = [(compile_path(endpoint.path)[0], endpoint) for endpoint in endpoints]
        self._metrics = metrics
        self._log_prompts = log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = open_visit(scope, self._asked_for(scope), keep_prompt=self._log_prompts)
        told = False

        def tell() -> None:
            nonlocal told
            if not told:
                told = True
                self._tell(visit)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                MutableHeaders(scope=message).setdefault("X-Request-Id", visit.shown_id)
            elif message["type"] == "http.response.body":
                visit.sent += len(message.get("body", b""))
                if not message.get("more_body", False):
                    tell()
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            tell()

    def _asked_for(self, scope: Scope) -> Endpoint | None:
        """The first that fits, as the router chooses."""
        method, path = scope["method"], scope["path"]
        for pattern, endpoint in self._paths:
            if method in endpoint.methods and pattern.match(path):
                return endpoint
        return None

    def _tell(self, visit: Visit) -> None:
        self._metrics.answered(visit.dialect, visit.status, visit.elapsed)
        # Probes come every second, and what is public holds nobody to account.
        log.log(logging.DEBUG if visit.public else logging.INFO, "%s", _line(visit))


def _line(visit: Visit) -> str:
    """``name=value`` pairs. Of the caller's own text only what cannot break a line, and a prompt quoted."""
    pairs: dict[str, object] = {
        "request": visit.shown_id,
        "job": visit.id,
        "method": visit.method if visit.endpoint else "",
        "path": visit.path if _SANE_PATH.fullmatch(visit.path) else "?",
        "dialect": visit.dialect,
        "owner": visit.owner,
        "status": visit.status,
        "code": visit.code or ("ok" if visit.status < 400 else "error"),
        "out": visit.sent,
        "ms": f"{visit.elapsed * 1000:.0f}",
    }
    pairs |= visit.figures
    pairs |= {f"{stage}_ms": f"{seconds * 1000:.0f}" for stage, seconds in visit.seconds.items()}
    if visit.prompt is not None:
        pairs["prompt"] = json.dumps(visit.prompt[:_LONGEST_PROMPT])
    return " ".join(f"{name}={value}" for name, value in pairs.items() if value != "")
