"""One HTTP request of any dialect, from its first byte to its log line."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Final, Generic

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.body import ClientGone, read_body
from api.budget import Lease
from api.dialect import Answer, Arrival, C, Dialect, Services, Streaming
from api.errors import headers_of
from api.exchange import figures, request_id, unless_gone
from api.probes import why_not
from api.stream import Event, Failed, events
from core.errors import ExecutionError, ServingError
from core.request import InferenceRequest
from core.result import InferenceResult

log = logging.getLogger("batchmux.api")

# Proxies such as nginx would otherwise collect events until there are kilobytes of them.
_UNBUFFERED: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Route(Generic[C]):
    """A callable for the routing table. ``max_body_bytes``: None is the server's own limit."""

    def __init__(self, services: Services, dialect: Dialect[C], *, max_body_bytes: int | None = None) -> None:
        self._services = services
        self._dialect = dialect
        self._max_body_bytes = max_body_bytes or services.options.max_body_bytes

    async def __call__(self, request: Request) -> Response:
        arrival = arrival_of(request)
        code = "ok"
        try:
            self._refuse_early()
            response = await self._work(request, arrival)
        except ClientGone:
            code = "cancelled"
            response = Response(status_code=499)
        except ServingError as error:
            code = error.code
            response = self._refusal(error, arrival)
        except Exception:
            log.exception("request=%s job=%s failed in a way nobody foresaw", arrival.shown_id, arrival.id)
            code = "pipeline_error"
            response = self._refusal(ExecutionError(code, "the server failed on this request"), arrival)
        response.headers["X-Request-Id"] = arrival.shown_id
        log.info(
            "request=%s job=%s path=%s status=%d code=%s out=%d ms=%.0f",
            arrival.shown_id,
            arrival.id,
            arrival.path,
            response.status_code,
            code,
            len(getattr(response, "body", b"")),
            (time.monotonic() - arrival.started) * 1000,
        )
        return response

    def _refuse_early(self) -> None:
        """Before a byte of the body is read. While a model loads, work is accepted and waits for it."""
        health = self._services.health()
        if health.state in ("failed", "draining"):
            raise why_not(health)
        self._services.admit()

    async def _work(self, request: Request, arrival: Arrival) -> Response:
        with self._services.intake.budget.lease() as lease:
            # Nested, so that no variable here keeps the body while the job runs.
            return await unless_gone(
                request.receive, self._compute(await self._read(request, arrival, lease), arrival, lease)
            )

    async def _read(self, request: Request, arrival: Arrival, lease: Lease) -> object:
        options = self._services.options
        body = await read_body(
            request.receive,
            request.headers,
            lease,
            limit=self._max_body_bytes,
            seconds=options.body_seconds,
            stall_seconds=options.body_stall_seconds,
        )
        return self._dialect.read(body, arrival)

    async def _compute(self, content: object, arrival: Arrival, lease: Lease) -> Response:
        call = await self._dialect.parse(content, arrival)
        del content
        lease.give_back()
        return await self._finish(call, arrival)

    async def _finish(self, call: C, arrival: Arrival) -> Response:
        results = await self._submit_all(call.requests)
        return _response(await self._dialect.render(call, results), figures(results[0]))

    async def _submit_all(self, requests: Sequence[InferenceRequest]) -> list[InferenceResult]:
        """All of them, or the first failure, which ends the others."""
        if len(requests) == 1:
            return [await self._services.submit(requests[0])]
        tasks = [asyncio.ensure_future(self._services.submit(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _refusal(self, error: ServingError, arrival: Arrival) -> Response:
        response = _response(self._dialect.refuse(error, arrival), headers_of(error))
        if error.code == "request_timeout" or "expect" in arrival.headers:
            # What is left of the body may never come, so the connection cannot be used again.
            response.headers["Connection"] = "close"
        return response


class StreamRoute(Route[C]):
    """A route whose dialect may answer in events while the work goes on."""

    def __init__(
        self, services: Services, dialect: Streaming[C], *, max_body_bytes: int | None = None
    ) -> None:
        super().__init__(services, dialect, max_body_bytes=max_body_bytes)
        self._streaming = dialect

    async def _finish(self, call: C, arrival: Arrival) -> Response:
        if not self._streaming.streams(call):
            return await super()._finish(call, arrival)
        services = self._services
        source = events(services.submit, call.requests[0], services.progress)
        first = await anext(source)
        if isinstance(first, Failed):  # refused at once: a status says more than an event
            await source.aclose()
            raise first.error
        chunks = self._streaming.stream(call, _continued(first, source))
        return StreamingResponse(chunks, media_type="text/event-stream", headers=_UNBUFFERED)


async def _continued(first: Event, rest: AsyncGenerator[Event, None]) -> AsyncIterator[Event]:
    async with aclosing(rest):
        yield first
        async for event in rest:
            yield event


def arrival_of(request: Request) -> Arrival:
    job_id = secrets.token_hex(8)
    return Arrival(
        id=job_id,
        shown_id=request_id(request.headers.get("x-request-id"), job_id),
        path=request.url.path,
        started=time.monotonic(),
        headers=request.headers,
        path_params=request.path_params,
        query=request.query_params,
        origin=str(request.base_url),
    )


def _response(answer: Answer, headers: dict[str, str]) -> Response:
    return Response(answer.body, answer.status, {**headers, **answer.headers}, answer.media_type)
