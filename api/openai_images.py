"""OpenAI's image routes: ``/v1/images/generations`` and ``/v1/images/edits``, under every prefix."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from api.asking import STAND_IN, time_left, too_late
from api.body import parse_json
from api.dialect import Answer, Arrival, Endpoint, Services
from api.form import parse_form
from api.images import ImageFormat
from api.json_fields import in_words
from api.openai_answer import Shape, render, stream
from api.openai_docs import ANSWERS, EDIT, GENERATION
from api.openai_errors import refuse
from api.openai_fields import Edit, Generation, checked, from_form
from api.openai_models import DOCUMENTED, PREFIXES, find
from api.route import StreamRoute
from api.stream import Event
from core.errors import RequestError, ServingError
from core.request import SEED_MAX, InferenceRequest, Size, Task
from core.result import InferenceResult
from core.spec import PipelineSpec

# Steps; every other quality is the model's own number, and no few-step model is made to run more than that.
_STEPS: Final = {"low": 4, "medium": 8}

# The dialect's own words for what ``PipelineSpec.request`` calls otherwise.
_OUR_WORDS: Final = {
    **{"steps": "num_inference_steps", "cfg": "true_cfg_scale", "images": "image"},
    **{"width": "size", "height": "size", "task": "model"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagesCall:
    requests: tuple[InferenceRequest, ...]
    shape: Shape
    streamed: bool


class OpenAIImages:
    """See ``api.dialect.Streaming``. ``kind`` is the body of the route that it stands behind."""

    def __init__(self, services: Services, kind: type[Generation]) -> None:
        self._services = services
        self._kind = kind

    def read(self, body: bytes, arrival: Arrival) -> object:
        declared = arrival.headers.get("content-type", "")
        # curl -d declares a form whatever it sends.
        if self._kind is Edit and declared.lower().startswith("multipart/"):
            return from_form(parse_form(body, declared))
        return parse_json(body)

    async def parse(self, content: object, arrival: Arrival) -> ImagesCall:
        wishes = checked(content, self._kind)
        if wishes.prompt is None:
            raise RequestError("invalid_parameter", "prompt is required; say what to show", param="prompt")
        streamed, count = bool(wishes.stream), wishes.n or 1
        if streamed and count > 1:
            raise RequestError("invalid_parameter", "a stream tells of one picture; send n 1", param="n")
        if wishes.partial_images and not streamed:
            raise RequestError(
                "invalid_parameter",
                "partial_images come in a stream; send stream true",
                param="partial_images",
            )
        spec = find(
            self._services.catalog, wishes.model, Task.EDIT if isinstance(wishes, Edit) else Task.GENERATE
        )
        shape = self._shape(wishes, spec, arrival)
        try:
            first = await self._request(wishes, spec, arrival)
        except RequestError as error:
            raise in_words(error, _OUR_WORDS) from None
        except TimeoutError:
            raise too_late() from None
        if first.seed > SEED_MAX - count:
            raise RequestError(
                "invalid_parameter", f"seed is over the limit of {SEED_MAX - count}", param="seed"
            )
        previews = wishes.partial_images or 0
        requests = tuple(
            replace(
                first,
                id=first.id if at == 0 else f"{first.id}-{at}",
                seed=first.seed + at,
                timeout=time_left(self._services.options.timeout, arrival.started),
                previews=previews,
            )
            for at in range(count)
        )
        return ImagesCall(requests=requests, shape=shape, streamed=streamed)

    async def render(self, call: ImagesCall, results: Sequence[InferenceResult]) -> Answer:
        return Answer(await render(self._services, call.shape, call.requests, results))

    def refuse(self, error: ServingError, arrival: Arrival) -> Answer:
        return refuse(error)

    def streams(self, call: ImagesCall) -> bool:
        return call.streamed

    def stream(self, call: ImagesCall, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
        return stream(self._services, call.shape, call.requests[0], events)

    async def _request(self, wishes: Generation, spec: PipelineSpec, arrival: Arrival) -> InferenceRequest:
        edit = wishes if isinstance(wishes, Edit) else None
        sources = edit.sources if edit else []
        mask = edit.mask_source if edit else None
        if edit and not sources:
            raise RequestError("invalid_parameter", "image is required; send one to edit", param="image")
        assert wishes.prompt is not None
        ask = partial(
            spec.request,
            id=arrival.id,
            task=Task.EDIT if edit else Task.GENERATE,
            prompt=wishes.prompt,
            negative_prompt=wishes.negative_prompt,
            steps=_steps(wishes, spec),
            cfg=wishes.cfg,
            seed=wishes.seed,
            strength=edit.strength if edit else None,
            adapters=wishes.adapters,
            step_cache=wishes.step_cache,
        )
        width, height = wishes.sides or (None, None)
        # What is wrong without the pictures costs no decoding.
        ask = partial(ask, width=width, height=height)
        request = ask(images=(STAND_IN,) * len(sources), mask=STAND_IN if mask else None)
        if not sources:
            return request
        async with asyncio.timeout(time_left(self._services.options.timeout, arrival.started)):
            pictures = await self._services.intake.load([*sources, mask] if mask else sources)
        if width is None and _takes(spec, pictures[0].size):
            ask = partial(ask, width=pictures[0].width, height=pictures[0].height)
        return ask(images=pictures[: len(sources)], mask=pictures[-1] if mask else None)

    def _shape(self, wishes: Generation, spec: PipelineSpec, arrival: Arrival) -> Shape:
        options = self._services.options
        image_format: ImageFormat = wishes.output_format or options.output_format
        quality = wishes.output_compression
        if image_format == "png" and quality not in (None, 100):
            raise RequestError(
                "invalid_parameter",
                "output_compression is for jpeg and webp; leave it out or choose one of them",
                param="output_compression",
            )
        return Shape(
            image_format=image_format,
            compression=quality,
            as_url=(wishes.response_format or options.images_response_format) == "url",
            origin=arrival.origin,
            quality=wishes.quality if wishes.quality in ("low", "medium", "xhigh", "max") else "high",
            event="image_edit" if isinstance(wishes, Edit) else "image_generation",
            patch=spec.patch,
        )


class Variations(OpenAIImages):
    """A route that OpenAI has retired too."""

    def read(self, body: bytes, arrival: Arrival) -> object:
        raise RequestError(
            "invalid_parameter",
            "variations are not made here; use /v1/images/edits and say in the prompt what to vary",
            param="image",
        )


def endpoints(services: Services) -> list[Endpoint]:
    routes = [
        (
            "generations",
            StreamRoute(services, OpenAIImages(services, Generation)),
            "Make pictures",
            GENERATION,
        ),
        ("edits", StreamRoute(services, OpenAIImages(services, Edit)), "Edit a picture", EDIT),
        ("variations", StreamRoute(services, Variations(services, Edit)), "Refused: use edits", {}),
    ]
    return [
        Endpoint(
            path=f"{prefix}/v1/images/{name}",
            handle=handle,
            summary=summary,
            responses=ANSWERS,
            openapi={"requestBody": body} if body else None,
            documented=prefix in DOCUMENTED,
        )
        for prefix in PREFIXES
        for name, handle, summary, body in routes
    ]


def _steps(wishes: Generation, spec: PipelineSpec) -> int | None:
    if wishes.num_inference_steps is not None:
        return wishes.num_inference_steps
    preset = _STEPS.get(wishes.quality or "")
    return None if preset is None else min(preset, spec.steps)


def _takes(spec: PipelineSpec, size: Size) -> bool:
    """Whether an edit can be as large as its picture; otherwise the model's own area, at that aspect."""
    return spec.min_side <= min(size) and max(size) <= spec.max_side
