"""The flat dialect over HTTP: ``/run`` and ``/runsync``.

A caller that accepts ``text/event-stream`` is told of every step: events ``progress``, then ``done`` with the
usual answer, or ``error`` with the usual refusal and its ``status``.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

import orjson

from api.body import parse_json
from api.dialect import Answer, Arrival, Endpoint, Services
from api.flat import FlatDialect, FlatJob, refuse, unwrap
from api.flat_docs import ANSWERS, BODY
from api.route import StreamRoute
from api.stream import Done, Event, Failed, KeepAlive
from core.errors import ServingError
from core.request import InferenceRequest
from core.result import InferenceResult, Progress
from core.service import HealthProbe


def endpoints(services: Services) -> list[Endpoint]:
    handle = StreamRoute(services, FlatHttp(services))
    return [
        Endpoint(
            path=path,
            handle=handle,
            summary="Make or edit a picture",
            responses=ANSWERS,
            openapi={"requestBody": BODY},
        )
        for path in ("/run", "/runsync")
    ]


@dataclass(frozen=True, slots=True)
class FlatCall:
    job: FlatJob
    shown_id: str
    streaming: bool

    @property
    def requests(self) -> tuple[InferenceRequest, ...]:
        return (self.job.request,)


class FlatHttp:
    """See ``api.dialect.Streaming``."""

    def __init__(self, services: Services) -> None:
        self._health: HealthProbe = services.health
        self._flat = FlatDialect(
            catalog=services.catalog,
            intake=services.intake,
            output_format=services.options.output_format,
            timeout=services.options.timeout,
        )

    def read(self, body: bytes, arrival: Arrival) -> object:
        return unwrap(parse_json(body))

    async def parse(self, content: object, arrival: Arrival) -> FlatCall:
        job = await self._flat.parse(content, id=arrival.id, arrived=arrival.started)
        return FlatCall(
            job, arrival.shown_id, "text/event-stream" in arrival.headers.get("accept", "").lower()
        )

    async def render(self, call: FlatCall, results: Sequence[InferenceResult]) -> Answer:
        return Answer(await self._flat.render(call.job, results[0]))

    def refuse(self, error: ServingError, arrival: Arrival) -> Answer:
        status, body = self._refused(error, arrival.shown_id)
        return Answer(orjson.dumps(body), status)

    def streams(self, call: FlatCall) -> bool:
        return call.streaming

    async def stream(self, call: FlatCall, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
        async for event in events:
            match event:
                case Progress():
                    yield _event("progress", orjson.dumps(_told(event)))
                case Done(result):
                    yield await self._done(call, result)
                case Failed(error):
                    yield self._error(call, error)
                case KeepAlive():
                    yield b": waiting\n\n"

    async def _done(self, call: FlatCall, result: InferenceResult) -> bytes:
        try:
            return _event("done", await self._flat.render(call.job, result))
        except ServingError as error:
            return self._error(call, error)

    def _error(self, call: FlatCall, error: ServingError) -> bytes:
        status, body = self._refused(error, call.shown_id)
        return _event("error", orjson.dumps({"status": status, **body}))

    def _refused(self, error: ServingError, shown_id: str) -> tuple[int, Mapping[str, object]]:
        return refuse(error, request_id=shown_id, gpu_available=self._health().gpu_available)


def _told(progress: Progress) -> dict[str, object]:
    return {
        "state": progress.state,
        "step": progress.step,
        "steps": progress.steps,
        "position": progress.position,
    }


def _event(name: str, data: bytes) -> bytes:
    return b"".join((b"event: ", name.encode(), b"\ndata: ", data, b"\n\n"))
