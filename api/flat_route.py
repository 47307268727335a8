"""The flat dialect over HTTP: ``/run`` and ``/runsync``."""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from api.body import parse_json
from api.dialect import Answer, Arrival, Endpoint, Services
from api.flat import FlatDialect, FlatJob, refuse, unwrap
from api.flat_docs import ANSWERS, BODY
from api.route import Route
from core.errors import ServingError
from core.request import InferenceRequest
from core.result import InferenceResult
from core.service import HealthProbe


def endpoints(services: Services) -> list[Endpoint]:
    handle = Route(services, FlatHttp(services))
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

    @property
    def requests(self) -> tuple[InferenceRequest, ...]:
        return (self.job.request,)


class FlatHttp:
    """See ``api.dialect.Dialect``."""

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
        return FlatCall(await self._flat.parse(content, id=arrival.id, arrived=arrival.started))

    async def render(self, call: FlatCall, results: Sequence[InferenceResult]) -> Answer:
        return Answer(await self._flat.render(call.job, results[0]))

    def refuse(self, error: ServingError, arrival: Arrival) -> Answer:
        status, body = refuse(error, request_id=arrival.shown_id, gpu_available=self._health().gpu_available)
        return Answer(orjson.dumps(body), status)
