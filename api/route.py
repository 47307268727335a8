"""One HTTP request of any dialect, from its first byte to its answer."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final, Generic

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.body import read_body
from api.budget import Lease
from api.dialect import Answer, Arrival, C, Dialect, Services, Streaming
from api.exchange import figures, unless_gone
from api.probes import why_not
from api.several import submit_all
from api.stream import Done, Event, Failed, events
from api.visit import Visit, arrival_of, visit_of

__all__ = ["Route", "StreamRoute", "arrival_of"]

# Proxies such as nginx would otherwise collect events until there are kilobytes of them.
_UNBUFFERED: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Route(Generic[C]):
    """A callable for the routing table.

    max_body_bytes: None is the server's own limit.
    any_model: another model than the default usually answers, so that one that cannot be loaded stops nobody.
    """

    def __init__(
        self,
        services: Services,
        dialect: Dialect[C],
        *,
        max_body_bytes: int | None = None,
        any_model: bool = False,
    ) -> None:
        self._services = services
        self._stoppers = ("draining",) if any_model else ("failed", "draining")
        self.dialect = dialect
        self._max_body_bytes = max_body_bytes or services.options.max_body_bytes

    async def __call__(self, request: Request) -> Response:
        """Raises; see ``api.refusing``."""
        self._refuse_early()
        return await self._work(request, arrival_of(request), visit_of(request.scope))

    def _refuse_early(self) -> None:
        """Before a byte of the body is read. While a model loads, work is accepted and waits for it."""
        health = self._services.health()
        if health.state in self._stoppers:
            raise why_not(health)
        self._services.admit()

    async def _work(self, request: Request, arrival: Arrival, visit: Visit) -> Response:
        with self._services.intake.budget.lease() as lease:
            # Nested, so that no variable here keeps the body while the job runs.
            return await unless_gone(
                request.receive,
                self._compute(await self._read(request, arrival, lease), arrival, lease, visit),
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
        return self.dialect.read(body, arrival)

    async def _compute(self, content: object, arrival: Arrival, lease: Lease, visit: Visit) -> Response:
        with visit.stage("parse"):
            call = await self.dialect.parse(content, arrival)
        del content
        lease.give_back()
        visit.asks(call.requests)
        return await self._finish(call, arrival, visit)

    async def _finish(self, call: C, arrival: Arrival, visit: Visit) -> Response:
        results = await submit_all(self._services.submit, call.requests)
        visit.got(results)
        with visit.stage("encode"):
            answer = await self.dialect.render(call, results)
        return _response(answer, {**figures(results[0]), "Server-Timing": visit.server_timing})


class StreamRoute(Route[C]):
    """A route whose dialect may answer in events while the work goes on."""

    def __init__(
        self, services: Services, dialect: Streaming[C], *, max_body_bytes: int | None = None
    ) -> None:
        super().__init__(services, dialect, max_body_bytes=max_body_bytes)
        self._streaming = dialect

    async def _finish(self, call: C, arrival: Arrival, visit: Visit) -> Response:
        if not self._streaming.streams(call):
            return await super()._finish(call, arrival, visit)
        services = self._services
        source = events(services.submit, call.requests[0], services.progress)
        first = await anext(source)
        if isinstance(first, Failed):  # refused at once: a status says more than an event
            await source.aclose()
            raise first.error
        chunks = self._streaming.stream(call, _continued(first, source, visit))
        return StreamingResponse(chunks, media_type="text/event-stream", headers=_UNBUFFERED)


async def _continued(first: Event, rest: AsyncGenerator[Event, None], visit: Visit) -> AsyncIterator[Event]:
    async with aclosing(rest):
        yield first
        async for event in rest:
            if isinstance(event, Failed):
                visit.code = event.error.code
            elif isinstance(event, Done):
                visit.got([event.result])
            yield event


def _response(answer: Answer, headers: dict[str, str]) -> Response:
    return Response(answer.body, answer.status, {**headers, **answer.headers}, answer.media_type)
