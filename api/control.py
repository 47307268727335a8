"""One HTTP request that computes no picture: small JSON in, JSON out, errors in its dialect's words."""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api.body import parse_json, read_body
from api.dialect import Refuse, Services
from api.exchange import unless_gone

MAX_BODY = 65_536  # bytes

Work = Callable[[object], Awaitable[Any]]


class Control:
    """A callable for the routing table.

    work: is handed the body as plain values, an empty object where there is none; its answer becomes JSON.
        It is cancelled when the caller leaves.
    """

    def __init__(self, services: Services, work: Work, refuse: Refuse) -> None:
        self._services = services
        self._work = work
        self.refuse = refuse

    async def __call__(self, request: Request) -> Response:
        """Raises; see ``api.refusing``."""
        content = await self._read(request)
        value = await unless_gone(request.receive, _once(self._work, content))
        return Response(orjson.dumps(value), media_type="application/json")

    async def _read(self, request: Request) -> object:
        options = self._services.options
        with self._services.intake.budget.lease() as lease:
            body = await read_body(
                request.receive,
                request.headers,
                lease,
                limit=MAX_BODY,
                seconds=options.body_seconds,
                stall_seconds=options.body_stall_seconds,
            )
        return parse_json(body) if body.strip() else {}


async def _once(work: Work, content: object) -> Any:
    return await work(content)
