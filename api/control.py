"""One HTTP request that computes no picture: small JSON in, JSON out, errors in its dialect's words."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api.body import ClientGone, parse_json, read_body
from api.dialect import Answer, Arrival, Services
from api.errors import headers_of
from api.exchange import unless_gone
from api.route import arrival_of
from core.errors import ExecutionError, ServingError

log = logging.getLogger("batchmux.api")

MAX_BODY = 65_536  # bytes

Work = Callable[[object], Awaitable[Any]]
Refuse = Callable[[ServingError, Arrival], Answer]


class Control:
    """A callable for the routing table.

    work: is handed the body as plain values, an empty object where there is none; its answer becomes JSON.
        It is cancelled when the caller leaves.
    """

    def __init__(self, services: Services, work: Work, refuse: Refuse) -> None:
        self._services = services
        self._work = work
        self._refuse = refuse

    async def __call__(self, request: Request) -> Response:
        arrival = arrival_of(request)
        try:
            content = await self._read(request)
            value = await unless_gone(request.receive, _once(self._work, content))
            response = Response(orjson.dumps(value), media_type="application/json")
        except ClientGone:
            response = Response(status_code=499)
        except ServingError as error:
            response = self._refusal(error, arrival)
        except Exception:
            log.exception("request=%s failed in a way nobody foresaw", arrival.shown_id)
            fault = ExecutionError("pipeline_error", "the server failed on this request")
            response = self._refusal(fault, arrival)
        response.headers["X-Request-Id"] = arrival.shown_id
        return response

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

    def _refusal(self, error: ServingError, arrival: Arrival) -> Response:
        answer = self._refuse(error, arrival)
        response = Response(answer.body, answer.status, headers_of(error), answer.media_type)
        if error.code == "request_timeout" or "expect" in arrival.headers:
            response.headers["Connection"] = "close"
        return response


async def _once(work: Work, content: object) -> Any:
    return await work(content)
