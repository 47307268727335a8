"""Hugging Face's inference tasks at ``/hf/{task}``, for ``InferenceClient`` and ``@huggingface/inference``.

Their ``base_url`` or ``endpointUrl`` is the task's own address; they post to it and to nothing below.
Source: the task specifications of huggingface.js, ``packages/tasks/src/tasks``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api.asking import ask_with_pictures
from api.body import parse_json
from api.dialect import Answer, Arrival, Dialect, Endpoint, Handler, Services
from api.errors import message_of, status_of
from api.flat import FALLBACK_PROMPT
from api.hugging_face_fields import (
    ANSWERS,
    ImageToImageBody,
    TextToImageBody,
    preferred_format,
    request_body,
)
from api.hugging_face_vision import LOOKING, read_picture_or_json
from api.images import ImageFormat
from api.intake import ImageSource
from api.json_fields import checked
from api.probes import why_not
from api.route import Route
from core.errors import RequestError, ServingError
from core.request import InferenceRequest, Task
from core.result import InferenceResult
from core.spec import PipelineSpec

_WORDS: Final = {"steps": "num_inference_steps", "cfg": "guidance_scale", "images": "inputs"}


def endpoints(services: Services) -> list[Endpoint]:
    """One pair of addresses for each of ``TASKS``, and a refusal that names them for every other task."""
    table: list[Endpoint] = []
    for task, (summary, model, dialect, answers) in TASKS.items():
        table += [
            Endpoint(
                path=f"/hf/{task}",
                handle=Route(services, dialect(services), any_model=task in LOOKING),
                summary=summary,
                responses=answers,
                openapi={"requestBody": request_body(model, raw=task != "text-to-image")},
            ),
            Endpoint(
                path=f"/hf/{task}/health",
                handle=_health(services),
                methods=("GET",),
                summary="200 when ready, as InferenceClient.health_check asks",
                responses={503: {"description": "Not ready, or draining"}},
                refuse=refuse,
            ),
        ]
    return [*table, Endpoint(path="/hf/{task}", handle=_no_such_task, refuse=refuse, documented=False)]


@dataclass(frozen=True, slots=True)
class PictureCall:
    request: InferenceRequest
    output_format: ImageFormat

    @property
    def requests(self) -> tuple[InferenceRequest, ...]:
        return (self.request,)


class _Pictures:
    """What the tasks that answer with a picture have in common."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def render(self, call: PictureCall, results: Sequence[InferenceResult]) -> Answer:
        picture = await self._services.intake.encode_result(call.request, results[0], call.output_format)
        return Answer(picture, media_type=f"image/{call.output_format}")

    def refuse(self, error: ServingError, arrival: Arrival) -> Answer:
        return refuse(error, arrival)

    def _spec(self, name: str | None, arrival: Arrival, task: Task) -> PipelineSpec:
        catalog, wanted = self._services.catalog, name or arrival.query.get("model")
        return catalog.able(task) if wanted is None else catalog.get(wanted)

    def _format(self, wish: ImageFormat | None, arrival: Arrival) -> ImageFormat:
        return wish or preferred_format(arrival.headers) or self._services.options.output_format


class TextToImage(_Pictures):
    """See ``api.dialect.Dialect``."""

    def read(self, body: bytes, arrival: Arrival) -> object:
        return parse_json(body)

    async def parse(self, content: object, arrival: Arrival) -> PictureCall:
        body = checked(TextToImageBody, content, "the body")
        wishes = body.parameters
        spec = self._spec(wishes.model, arrival, Task.GENERATE)
        request = await ask_with_pictures(
            partial(
                spec.request,
                id=arrival.id,
                task=Task.GENERATE,
                prompt=body.inputs,
                negative_prompt=wishes.negative_prompt,
                width=wishes.width,
                height=wishes.height,
                steps=wishes.num_inference_steps,
                cfg=wishes.guidance_scale,
                seed=wishes.seed,
                timeout=self._services.options.timeout,
            ),
            self._services.intake,
            (),
            None,
            arrived=arrival.started,
            words=_WORDS | {"prompt": "inputs"},
        )
        return PictureCall(request, self._format(wishes.output_format, arrival))


class ImageToImage(_Pictures):
    """See ``api.dialect.Dialect``. A body that is no JSON is the picture itself, and says no more."""

    def read(self, body: bytes, arrival: Arrival) -> object:
        return read_picture_or_json(body, arrival)

    async def parse(self, content: object, arrival: Arrival) -> PictureCall:
        if isinstance(content, bytes):
            body, source = ImageToImageBody(inputs=""), ImageSource(content, "inputs")
        else:
            body = checked(ImageToImageBody, content, "the body")
            source = ImageSource(body.inputs, "inputs")
        wishes = body.parameters
        spec = self._spec(wishes.model, arrival, Task.EDIT)
        width, height = wishes.size
        request = await ask_with_pictures(
            partial(
                spec.request,
                id=arrival.id,
                task=Task.EDIT,
                prompt=FALLBACK_PROMPT if wishes.prompt is None else wishes.prompt,
                negative_prompt=wishes.negative_prompt,
                width=width,
                height=height,
                steps=wishes.num_inference_steps,
                cfg=wishes.guidance_scale,
                seed=wishes.seed,
                strength=wishes.strength,
                timeout=self._services.options.timeout,
            ),
            self._services.intake,
            (source,),
            ImageSource(wishes.mask_image, "mask_image") if wishes.mask_image else None,
            arrived=arrival.started,
            words=_WORDS | {"mask": "mask_image"},
        )
        return PictureCall(request, self._format(wishes.output_format, arrival))


# A task of another kind is one more row: its dialect brings its own body, call and answer.
TASKS: Final[
    Mapping[str, tuple[str, Any, Callable[[Services], Dialect[Any]], dict[int | str, dict[str, Any]]]]
] = {
    "text-to-image": ("Make a picture of a text", TextToImageBody, TextToImage, ANSWERS),
    "image-to-image": ("Edit a picture", ImageToImageBody, ImageToImage, ANSWERS),
    **LOOKING,
}


def refuse(error: ServingError, arrival: Arrival) -> Answer:
    """The clients show ``error`` alone."""
    body = {"error": message_of(error), "code": error.code}
    return Answer(
        orjson.dumps(body if error.param is None else body | {"param": error.param}), status_of(error)
    )


async def _no_such_task(request: Request) -> Response:
    raise RequestError("not_found", f"no such task here; known: {', '.join(TASKS)}", param="task")


def _health(services: Services) -> Handler:
    async def handle(request: Request) -> Response:
        health = services.health()
        if not health.ready:
            raise why_not(health)
        return Response(orjson.dumps({"status": health.state}), media_type="application/json")

    return handle
