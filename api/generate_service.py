"""The text-to-image server's contract: ``POST /generate``, and ``/generate-stream`` for a progress bar.

A picture is answered as a data URI. Which LoRAs are over it is this dialect's own affair: see
``api.default_loras``.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import orjson
import pybase64
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from api.body import parse_json
from api.default_loras import DefaultLoras, lora_endpoints
from api.dialect import Answer, Arrival, Endpoint, Handler, Services
from api.errors import message_of
from api.fields import FAULTS, Wire, as_fault, body_of, checked, worded
from api.images import ImageFormat
from api.intake import ImageIntake
from api.json_fields import Number, Text, WholeNumber
from api.route import Route, StreamRoute
from api.stream import Done, Event, Failed, KeepAlive
from core.errors import RequestError, ServingError
from core.request import InferenceRequest, Task
from core.result import InferenceResult, Progress
from core.spec import PipelineSpec

STEPS: Final = 9  # of a request that names none, where the model is not distilled for another number

SIDE: Final = 1024  # likewise

_SENTENCES: Final = {
    "deadline_exceeded": "Generation timed out",
    "pipeline_error": "Image generation failed",
    "output_too_large": "Image generation failed",
}
_PLACES: Final = {"steps": ("num_inference_steps",), "cfg": ("guidance_scale",)}


class GenerateBody(Wire):
    prompt: Text = Field(min_length=1, max_length=2000, description="what to show")
    negative_prompt: Text | None = Field(None, max_length=2000)
    width: WholeNumber | None = Field(None, ge=256, le=2048, description="in pixels; absent means 1024")
    height: WholeNumber | None = Field(None, ge=256, le=2048, description="in pixels; absent means 1024")
    seed: WholeNumber | None = Field(None, ge=-1, description="absent, null and -1 mean a random one")
    num_inference_steps: WholeNumber | None = Field(None, ge=1, le=100, description=f"absent means {STEPS}")
    guidance_scale: Number | None = Field(None, ge=0, le=20, description="absent means the model's own")


class GenerateAnswer(Wire):
    image_base64: str = Field(description="a data URI")
    seed: int = Field(description="the one used; sending it again repeats the picture")
    generation_time_ms: int
    queue_wait_ms: int
    width: int
    height: int
    image_id: str | None = Field(None, description="null: pictures of this path are not kept")


def endpoints(services: Services) -> list[Endpoint]:
    loras = DefaultLoras()
    service = GenerateService(services, loras)
    body = {"requestBody": body_of(GenerateBody)}
    return [
        Endpoint(
            path="/generate",
            handle=Counted(Route(services, service), service, loras),
            summary="Make a picture of a text, answered as a data URI",
            openapi=body,
            responses={200: {"model": GenerateAnswer, "description": "The picture"}, **FAULTS},
        ),
        Endpoint(
            path="/generate-stream",
            handle=Counted(StreamRoute(services, service), service, loras),
            summary="The same as events: queued, progress, and complete or error",
            openapi=body,
            responses={200: {"description": "Events", "content": {"text/event-stream": {}}}, **FAULTS},
        ),
        *lora_endpoints(services, loras),
    ]


class Counted:
    """A route during which the LoRAs stay as they are."""

    def __init__(self, route: Handler, dialect: "GenerateService", loras: DefaultLoras) -> None:
        self.dialect = dialect
        self._route = route
        self._loras = loras

    async def __call__(self, request: Request) -> Response:
        with self._loras.in_use():
            return await self._route(request)


@dataclass(frozen=True, slots=True)
class GenerateCall:
    request: InferenceRequest
    shown_id: str
    streaming: bool

    @property
    def requests(self) -> tuple[InferenceRequest, ...]:
        return (self.request,)


class GenerateService:
    """See ``api.dialect.Streaming``."""

    def __init__(self, services: Services, loras: DefaultLoras) -> None:
        self._services = services
        self._loras = loras

    def read(self, body: bytes, arrival: Arrival) -> object:
        return parse_json(body)

    async def parse(self, content: object, arrival: Arrival) -> GenerateCall:
        wishes = checked(GenerateBody, content)
        services = self._services
        spec = services.catalog.able(Task.GENERATE)
        try:
            request = spec.request(
                id=arrival.id,
                task=Task.GENERATE,
                prompt=wishes.prompt,
                # Its clients send "" where nothing is meant, which is the model's own here.
                negative_prompt=wishes.negative_prompt or None,
                width=_side(wishes.width, spec),
                height=_side(wishes.height, spec),
                steps=wishes.num_inference_steps or spec.lightning_steps or min(STEPS, spec.max_steps),
                cfg=wishes.guidance_scale,
                seed=wishes.seed,
                adapters=self._loras.active,
                timeout=services.options.timeout,
            )
        except RequestError as error:
            raise as_fault(error, _PLACES) from None
        return GenerateCall(request, arrival.shown_id, arrival.path.endswith("-stream"))

    async def render(self, call: GenerateCall, results: Sequence[InferenceResult]) -> Answer:
        return Answer(await self._rendered(call, results[0]))

    def refuse(self, error: ServingError, arrival: Arrival) -> Answer:
        status = 503 if error.code == "queue_full" else None
        return worded(error, arrival, status=status, message=self._sentence(error))

    def streams(self, call: GenerateCall) -> bool:
        return call.streaming

    async def stream(self, call: GenerateCall, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
        with self._loras.in_use():
            async with aclosing(self._chunks(call, events)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _chunks(self, call: GenerateCall, events: AsyncIterator[Event]) -> AsyncGenerator[bytes, None]:
        told_of_queue = False
        async for event in events:
            match event:
                case Progress() as progress:
                    if progress.state == "queued" or not told_of_queue:
                        told_of_queue = True
                        yield _event(_queued(call, progress))
                    if progress.step:
                        yield _event(_progress(progress))
                case Done(result):
                    yield await self._complete(call, result)
                case Failed(error):
                    yield _event({"type": "error", "message": self._sentence(error)})
                case KeepAlive():
                    yield b": waiting\n\n"

    async def _complete(self, call: GenerateCall, result: InferenceResult) -> bytes:
        try:
            answer = await self._rendered(call, result)
        except ServingError as error:
            return _event({"type": "error", "message": self._sentence(error)})
        return b"".join((b'data: {"type":"complete",', answer[1:], b"\n\n"))

    async def _rendered(self, call: GenerateCall, result: InferenceResult) -> bytes:
        services = self._services
        answer = partial(_answer, call, result, services.intake, services.options.output_format)
        return await services.intake.codec.finish(answer)

    def _sentence(self, error: ServingError) -> str:
        """What its clients show."""
        if error.code == "queue_full":
            most = self._services.options.max_queue
            return f"Request queue is full (max {most}). Please try again later."
        return _SENTENCES.get(error.code) or message_of(error)


def _answer(
    call: GenerateCall, result: InferenceResult, intake: ImageIntake, image_format: ImageFormat
) -> bytes:
    size = call.request.size
    picture = pybase64.b64encode(intake.file(call.request, result, image_format))
    rest = {
        "seed": result.seed,
        "generation_time_ms": round(result.inference_seconds * 1000),
        "queue_wait_ms": round(result.queue_seconds * 1000),
        "width": size[0],
        "height": size[1],
        "image_id": None,
    }
    start = f'{{"image_base64":"data:image/{image_format};base64,'.encode()
    # Joined: a JSON writer would only look at a million harmless characters once more.
    return b"".join((start, picture, b'",', orjson.dumps(rest)[1:]))


def _queued(call: GenerateCall, progress: Progress) -> dict[str, Any]:
    return {"type": "queued", "queue_position": progress.position or 0, "request_id": call.shown_id}


def _progress(progress: Progress) -> dict[str, Any]:
    return {
        "type": "progress",
        "step": progress.step,
        "total_steps": progress.steps,
        "progress": round(100 * progress.step / progress.steps),
    }


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def _side(sent: int | None, spec: PipelineSpec) -> int:
    return min(SIDE, spec.max_side) if sent is None else sent
