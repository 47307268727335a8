"""The edit form: ``POST /edit`` takes a picture and a text as a form and answers PNG bytes.

Its errors are ``{"error", "detail", "request_id"}`` and nothing more. What it was sent decides whether a file
is a picture; the declared type only chooses between two of its sentences.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

import orjson
from pydantic import BeforeValidator, Field
from starlette.requests import Request
from starlette.responses import Response

from api.asking import STAND_IN, time_left, too_late
from api.dialect import Answer, Arrival, Endpoint, Services
from api.errors import message_of, status_of
from api.fields import FAULTS, FieldFault, Wire, as_fault, checked, schema_of
from api.form import Form, Part, parse_form
from api.intake import ImageSource
from api.json_fields import Text
from api.route import Route, arrival_of
from core.errors import ExecutionError, RequestError, ServingError
from core.request import Image, InferenceRequest, Task
from core.result import InferenceResult, OnProgress, Progress
from core.service import Health, Submit

# What its clients know: (status, error) of ours. Anything else is ``http_error``.
_WORDS: Final = {
    "invalid_image": (400, "invalid_image"),
    "image_too_large": (413, "invalid_image"),
    "deadline_exceeded": (504, "timeout"),
    "gpu_out_of_memory": (503, "gpu_oom"),
    "pipeline_error": (503, "inference_error"),
    "device_lost": (503, "inference_error"),
    "output_too_large": (503, "inference_error"),
    "invalid_parameter": (422, "validation_error"),
    "unknown_field": (422, "validation_error"),
}
_PLACES: Final = {"cfg": ("guidance_scale",), "images": ("image",)}
_FILES: Final = ("image", "image[]", "images", "images[]", "image_2", "image_3")
_TEXTS: Final = tuple(f"image_{kind}{end}" for end in ("", "_2", "_3") for kind in ("url", "base64"))


def _blank(text: object) -> object:
    """Forms send every field they have."""
    return None if isinstance(text, str) and not text.strip() else text


class EditFields(Wire):
    """Numbers come as text."""

    prompt: Text = Field(min_length=1)
    seed: Annotated[int | None, BeforeValidator(_blank), Field(ge=-1, le=2**63 - 1)] = None
    guidance_scale: Annotated[
        float | None,
        BeforeValidator(_blank),
        Field(allow_inf_nan=False, description="0 or less: the default"),
    ] = None
    steps: Annotated[int | None, BeforeValidator(_blank), Field(ge=1)] = None


class FileFault(RequestError):
    """What was sent as a picture is none. ``word`` is the error's name on the wire."""

    def __init__(self, word: str, message: str) -> None:
        super().__init__("invalid_image", message, param="image")
        self.word = word


class WaitFault(ExecutionError):
    """The deadline passed before the first step."""

    def __init__(self) -> None:
        super().__init__("deadline_exceeded", "Request timed out waiting for GPU")


def endpoints(services: Services) -> list[Endpoint]:
    return [
        Endpoint(
            path="/edit",
            handle=Route(replace(services, submit=_noting_the_wait(services.submit)), EditForm(services)),
            summary="Edit a picture, sent as a form; answers PNG bytes",
            openapi={"requestBody": _BODY},
            responses={200: {"description": "The picture", "content": {"image/png": {}}}, **FAULTS},
        ),
        Endpoint(
            path="/health/gpu",
            handle=GpuHealth(services),
            methods=("GET",),
            summary="The device and its memory; always 200",
            public=True,
        ),
    ]


@dataclass(frozen=True, slots=True)
class EditCall:
    request: InferenceRequest

    @property
    def requests(self) -> tuple[InferenceRequest, ...]:
        return (self.request,)


class EditForm:
    """See ``api.dialect.Dialect``."""

    def __init__(self, services: Services) -> None:
        self._catalog = services.catalog
        self._intake = services.intake
        self._timeout = services.options.timeout

    def read(self, body: bytes, arrival: Arrival) -> object:
        return parse_form(body, arrival.headers.get("content-type", ""))

    async def parse(self, content: object, arrival: Arrival) -> EditCall:
        assert isinstance(content, Form)
        pictures = _pictures(content)
        wishes = checked(EditFields, _texts(content))
        if not pictures:
            raise FieldFault("invalid_parameter", "Field required", place=("image",), kind="missing")
        spec = self._catalog.able(Task.EDIT)
        guidance = wishes.guidance_scale
        timeout = self._timeout

        def ask(images: tuple[Image, ...]) -> InferenceRequest:
            return spec.request(
                id=arrival.id,
                task=Task.EDIT,
                prompt=wishes.prompt,
                images=images,
                steps=wishes.steps,
                cfg=guidance if guidance is not None and guidance > 0 else None,
                seed=wishes.seed,
                timeout=timeout,
            )

        try:
            ask((STAND_IN,) * len(pictures))  # what is wrong without them costs no decoding
            async with asyncio.timeout(time_left(timeout, arrival.started)):
                images = await self._load(pictures)
            request = ask(images)
        except RequestError as error:
            raise as_fault(error, _PLACES) from None
        except TimeoutError:
            raise too_late() from None
        return EditCall(replace(request, timeout=time_left(timeout, arrival.started)))

    async def _load(self, pictures: Sequence[Part]) -> tuple[Image, ...]:
        if any(not part.data for part in pictures):
            raise FileFault("invalid_image", "Empty file")
        try:
            return await self._intake.load([_source(part) for part in pictures])
        except RequestError as error:
            if error.code != "invalid_image":
                raise
            types = [part.media_type for part in pictures if part.filename is not None]
            if any(kind and not kind.startswith("image/") for kind in types):
                raise FileFault("invalid_file", "File must be an image") from None
            raise FileFault("invalid_image", f"Invalid image: {error.message}") from None

    async def render(self, call: EditCall, results: Sequence[InferenceResult]) -> Answer:
        (result,) = results
        picture = await self._intake.encode_result(call.request, result, "png")
        return Answer(picture, media_type="image/png")

    def refuse(self, error: ServingError, arrival: Arrival) -> Answer:
        status, word = _WORDS.get(error.code, (status_of(error), "http_error"))
        detail: object = message_of(error)
        if isinstance(error, FileFault):
            word = error.word
        elif isinstance(error, FieldFault):
            detail = error.detail
        elif word == "timeout" and not isinstance(error, WaitFault):
            detail = "Inference timed out"
        return Answer(orjson.dumps({"error": word, "detail": detail, "request_id": arrival.shown_id}), status)


def _noting_the_wait(submit: Submit) -> Submit:
    async def noting(request: InferenceRequest, on_progress: OnProgress | None = None) -> InferenceResult:
        began = False

        def tell(step: Progress) -> None:  # on the device thread
            nonlocal began
            began = True
            if on_progress is not None:
                on_progress(step)

        try:
            return await submit(request, tell)
        except ExecutionError as error:
            if error.code == "deadline_exceeded" and not began:
                raise WaitFault from None
            raise

    return noting


class GpuHealth:
    """What the older server told of its device."""

    def __init__(self, services: Services) -> None:
        self._health = services.health

    async def __call__(self, request: Request) -> Response:
        body = orjson.dumps(gpu_facts(self._health()))
        return Response(body, 200, {"X-Request-Id": arrival_of(request).shown_id}, "application/json")


def gpu_facts(health: Health) -> dict[str, Any]:
    return {
        "status": "ok" if health.ready else health.state,
        "cuda_available": health.gpu_available,
        "model_loaded": health.model in health.loaded,
        "device_name": health.device.get("name"),
        "allocated_mb": health.device.get("allocated_mb"),
        "reserved_mb": health.device.get("reserved_mb"),
        "compute_capability": health.device.get("compute_capability"),
    }


def _pictures(form: Form) -> list[Part]:
    """In the order of the form. Empty texts count as absent, and files of no name: pages send those."""
    return [part for part in form.parts if part.name in (*_FILES, *_TEXTS) and (part.data or part.filename)]


def _texts(form: Form) -> dict[str, str]:
    """An unknown field's content is not looked at: it may be a file."""
    known = EditFields.model_fields
    others = [name for name in form.names() if name not in (*_FILES, *_TEXTS)]
    texts = {name: form.text(name) if name in known else "unknown" for name in others}
    return {name: text for name, text in texts.items() if text}


def _source(part: Part) -> ImageSource:
    if part.filename is None:
        try:
            return ImageSource(part.data.decode("ascii").strip(), part.name)
        except UnicodeDecodeError:
            pass
    return ImageSource(part.data, part.name)


def _form_schema() -> dict[str, Any]:
    schema = schema_of(EditFields)
    picture = {"type": "string", "format": "binary", "description": "the picture; up to three"}
    schema["properties"] = {"image": picture, **schema["properties"]}
    schema["required"] = ["image", "prompt"]
    return schema


_BODY: Final = {"required": True, "content": {"multipart/form-data": {"schema": _form_schema()}}}
