"""The vision service's contract: ``POST /inference/…``, several pictures to a request, answers as JSON.

What is found is written, and drawn, in a codec's thread by ``api.vision_answers``.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from api.asking import STAND_IN, time_left
from api.body import parse_json
from api.dialect import Answer, Arrival, Endpoint, Services
from api.fields import FAULTS, as_fault, body_of, checked, worded
from api.intake import ImageSource
from api.route import Route
from api.vision_fields import MaskFormat, Sam3Body, VisionBody, fault
from api.vision_kinds import KINDS, Kind, find
from core.errors import RequestError, ServingError
from core.request import InferenceRequest
from core.result import InferenceResult
from core.spec import PipelineSpec
from core.vision import Segment

# The service promised 400 for what it cannot read; 413 says more of what is too large.
_UNREADABLE: Final = frozenset(
    {"invalid_image", "url_not_allowed", "image_fetch_failed", "image_fetch_timeout"}
)
_RENDER: Final = {
    "name": "render",
    "in": "query",
    "description": "1: the one picture, as PNG, with what was found drawn on it",
    "schema": {"enum": ["0", "1"]},
}


def endpoints(services: Services) -> list[Endpoint]:
    return [
        Endpoint(
            path=f"/inference/{kind.slug}",
            handle=Route(services, VisionService(services, kind), any_model=True),
            summary=kind.summary,
            openapi={"requestBody": body_of(kind.body), "parameters": [_RENDER]},
            responses={
                **FAULTS,
                200: {
                    "description": "What was found",
                    "content": {
                        "application/json": {"schema": {"type": "object", "required": ["processing_time"]}},
                        "image/png": {"schema": {"type": "string", "format": "binary"}},
                    },
                },
            },
        )
        for kind in KINDS.values()
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionCall:
    """model: as the answer names it. render: a picture is wanted, with what was found drawn on it."""

    kind: Kind
    body: VisionBody
    requests: tuple[InferenceRequest, ...]
    model: str
    started: float
    mask_format: MaskFormat
    render: bool


class VisionService:
    """See ``api.dialect.Dialect``. mask_format: where a request names none."""

    def __init__(self, services: Services, kind: Kind, *, mask_format: MaskFormat = "rle") -> None:
        self._services = services
        self._kind = kind
        self._mask_format = mask_format

    def read(self, body: bytes, arrival: Arrival) -> object:
        return parse_json(body)

    async def parse(self, content: object, arrival: Arrival) -> VisionCall:
        body = self.wishes(content)
        spec = find(self._services.catalog, body.model_id, self._kind.task)
        given = body.output_format if isinstance(body, Sam3Body) else None
        return VisionCall(
            kind=self._kind,
            body=body,
            requests=await self._requests(body, spec, arrival),
            model=spec.model_id,
            started=arrival.started,
            mask_format=given or self._mask_format,
            render=self._renders(body, arrival),
        )

    def wishes(self, content: object) -> VisionBody:
        """The body, as far as it can be judged without its pictures. Raises ``RequestError``."""
        body = checked(self._kind.body, content)
        most = self._services.options.max_vision_images
        if len(body.images) > most:
            raise fault(
                "images", f"{len(body.images)} images are over the limit of {most} of one request; send fewer"
            )
        spec = find(self._services.catalog, body.model_id, self._kind.task)
        try:
            ask = body.asks()[0]
        except ValueError as error:
            raise fault(*error.args) from None
        if not (isinstance(ask, Segment) and ask.variant == "boxes"):  # boxes need to know the picture
            try:
                spec.look(id="-", image=STAND_IN, ask=ask)
            except RequestError as error:
                raise _as_said(error) from None
        return body

    async def _requests(
        self, body: VisionBody, spec: PipelineSpec, arrival: Arrival
    ) -> tuple[InferenceRequest, ...]:
        """One for each picture: it meets others' in a batch. Raises ``RequestError``."""
        options = self._services.options
        sources = [ImageSource(one.content, f"images.{at}") for at, one in enumerate(body.images)]
        left = time_left(options.timeout, arrival.started)
        try:
            images = await self._services.intake.load_within(sources, left, options.max_request_pixels)
        except RequestError as error:
            if error.param is None or len(sources) == 1:
                raise
            raise RequestError(error.code, f"{error.param}: {error.message}", param=error.param) from None
        left = time_left(options.timeout, arrival.started)
        try:
            return tuple(
                spec.look(id=f"{arrival.id}-{at}" if at else arrival.id, image=image, ask=ask, timeout=left)
                for at, (image, ask) in enumerate(zip(images, body.asks(), strict=True))
            )
        except RequestError as error:
            raise _as_said(error) from None

    def _renders(self, body: VisionBody, arrival: Arrival) -> bool:
        wish = arrival.query.get("render", "0")
        if wish not in ("0", "1", "true", "false"):
            raise RequestError("invalid_parameter", "render must be 0 or 1", param="render")
        wanted = wish in ("1", "true") or _takes_only_pictures(arrival)
        if wanted and len(body.images) > 1:
            raise fault("images", f"{len(body.images)} images, and render draws on one; send one")
        return wanted

    async def render(self, call: VisionCall, results: Sequence[InferenceResult]) -> Answer:
        from api.vision_answers import answer, drawn  # numpy's import would delay a server's first answer

        codec = self._services.intake.codec
        options = self._services.options
        until = None if options.timeout is None else call.started + options.timeout
        if call.render:
            return Answer(await codec.write(partial(drawn, call, results), until), media_type="image/png")
        body = await codec.write(partial(answer, call, results, options.max_answer_bytes), until)
        seconds = b"%.6f" % (time.monotonic() - call.started)
        return Answer(b'{"processing_time":' + seconds + b"," + body[1:])

    def refuse(self, error: ServingError, arrival: Arrival) -> Answer:
        return refuse(error, arrival)


def refuse(error: ServingError, arrival: Arrival) -> Answer:
    return worded(error, arrival, status=400 if error.code in _UNREADABLE else None)


_PLACES: Final[dict[str, tuple[str, ...]]] = {
    "labels": ("prompts",),
    "priors": ("resolve_overlaps",),
    "task": ("model_id",),
}


def _as_said(error: RequestError) -> ServingError:
    return as_fault(error, _PLACES)


def _takes_only_pictures(arrival: Arrival) -> bool:
    """Clients that take anything name no kind; browsers name HTML first."""
    kinds = [part.partition(";")[0].strip().lower() for part in arrival.headers.get("accept", "").split(",")]
    return kinds == ["image/png"]
