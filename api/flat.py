"""The flat dialect of ``/run`` and ``/runsync``, which the RunPod worker speaks too.

``{"input": {…}}`` in, ``{"image": base64, "prompt", "num_inference_steps", …}`` out. It knows status
codes where its contract fixes them, and nothing else of HTTP.
"""

import asyncio
import difflib
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Final

import orjson
import pybase64
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictInt,
    StrictStr,
    ValidationError,
    WithJsonSchema,
)

from api.body import LongText
from api.errors import message_of, status_of
from api.images import ImageFormat, encode
from api.intake import ImageIntake, ImageSource
from core.catalog import Catalog
from core.errors import ExecutionError, RequestError, ServingError
from core.request import Image, InferenceRequest, Task
from core.result import InferenceResult

FALLBACK_PROMPT: Final = "Enhance the image"
MAX_TIMEOUT: Final = 3600.0

# What RunPod's own API defines beside ``input``: a name is harmless, the others ask for something.
_IGNORED_BESIDE_INPUT: Final = frozenset({"id"})
_QUEUED_ONLY: Final = frozenset({"webhook", "policy", "s3Config"})

_STAND_IN: Final = Image(pixels=bytes(3), width=1, height=1)

# A dialect's own word for what ``PipelineSpec.request`` calls otherwise.
_OUR_WORDS: Final = {"steps": "num_inference_steps", "cfg": "true_cfg_scale"}


def _encodable(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("holds half a surrogate pair") from None
    return text


def _text(value: object) -> str | LongText:
    if not isinstance(value, str | LongText):
        raise ValueError("should be a valid string")
    return value


def _short(text: object) -> object:
    if isinstance(text, LongText):
        raise ValueError("is far over the limit; shorten it")
    return text


_Prompt = Annotated[StrictStr, BeforeValidator(_short), AfterValidator(_encodable)]
_Picture = Annotated[str | LongText, PlainValidator(_text), WithJsonSchema({"type": "string"})]
_Int = Annotated[StrictInt, Field(ge=-(2**63), le=2**63)]
_Float = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class MissingImage(RequestError):
    """Its status and text are fixed by the dialect's first clients."""

    def __init__(self) -> None:
        super().__init__("invalid_parameter", "Either image_url or image_base64 required", param="image_url")


class FlatInput(BaseModel):
    """What ``input`` may hold. Absent, null and, for ``seed``, -1 leave the choice to the server."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    prompt: _Prompt | None = Field(None, description="what to do to the picture; echoed verbatim")
    image_url: _Picture | None = Field(None, description="public http(s) URL; wins over image_base64")
    image_base64: _Picture | None = Field(None, description="base64 or data URI")
    image_url_2: _Picture | None = Field(None, description="second reference picture")
    image_base64_2: _Picture | None = None
    image_url_3: _Picture | None = Field(None, description="third reference picture")
    image_base64_3: _Picture | None = None
    image: _Picture | None = Field(None, description="URL, data URI or base64, told apart by looking")
    images: list[_Picture] | None = Field(None, description="1 to 3 pictures, each as in image")
    seed: _Int | None = None
    width: _Int | None = Field(None, description="of the answer, in pixels")
    height: _Int | None = Field(None, description="of the answer, in pixels")
    num_inference_steps: _Int | None = None
    true_cfg_scale: _Float | None = Field(None, description="1 means unguided")
    negative_prompt: _Prompt | None = None
    output_format: ImageFormat | None = None
    model: StrictStr | None = Field(None, description="registry name or alias")
    timeout: _Float | None = Field(
        None, gt=0, le=MAX_TIMEOUT, description="seconds after which the answer is no use"
    )


class FlatAnswer(BaseModel):
    """What a finished edit answers."""

    image: str = Field(description="base64 without a prefix")
    prompt: str
    num_inference_steps: int
    lightning_enabled: bool
    seed: int = Field(description="the one used; sending it again repeats the picture")
    model: str
    width: int
    height: int
    output_format: ImageFormat


@dataclass(frozen=True, slots=True)
class FlatJob:
    request: InferenceRequest
    output_format: ImageFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class FlatDialect:
    """The dialect, with what this process puts where a request says nothing."""

    catalog: Catalog
    intake: ImageIntake
    output_format: ImageFormat = "png"
    timeout: float | None = None

    async def parse(
        self,
        job_input: object,
        *,
        id: str,
        arrived: float | None = None,
        prompt_fallback: str | None = None,
    ) -> FlatJob:
        """The value of ``input``, checked in full, its pictures fetched and decoded.

        arrived: by the monotonic clock, when the caller's ``timeout`` began; None is now. The request's
            own ``timeout`` is what is left of it.
        prompt_fallback: stands in for an absent prompt; None refuses.
        Raises ``RequestError`` naming field, limit and remedy, never the caller's input,
        ``CapacityError`` when too much is being read already, and ``ExecutionError``
        ``deadline_exceeded`` when nothing is left.
        """
        began = time.monotonic() if arrived is None else arrived
        wishes = _checked(job_input)
        prompt = prompt_fallback if wishes.prompt is None else wishes.prompt
        if prompt is None:
            raise RequestError("invalid_parameter", "prompt is required; say what to do", param="prompt")
        spec = self.catalog.get(wishes.model)
        sources = _sources(wishes)
        ask = partial(
            spec.request,
            id=id,
            task=Task.EDIT,
            prompt=prompt,
            negative_prompt=wishes.negative_prompt,
            width=wishes.width or None,  # clients in Go send the zero of a field that is not set
            height=wishes.height or None,
            steps=wishes.num_inference_steps,
            cfg=wishes.true_cfg_scale,
            seed=wishes.seed,
            timeout=self.timeout if wishes.timeout is None else wishes.timeout,
        )
        try:
            asked = ask(images=(_STAND_IN,) * len(sources))  # what is wrong without them costs no decoding
            async with asyncio.timeout(_left(asked.timeout, began)):
                request = ask(images=await self.intake.load(sources))
        except RequestError as error:
            raise _in_our_words(error) from None
        except TimeoutError:
            raise _too_late() from None
        request = replace(request, timeout=_left(asked.timeout, began))
        return FlatJob(request, wishes.output_format or self.output_format)

    async def render(self, job: FlatJob, result: InferenceResult) -> bytes:
        """The answer as JSON text; resized, encoded and joined in the codec's threads."""
        return await self.intake.codec.finish(partial(_render, job, result))

    async def render_output(self, job: FlatJob, result: InferenceResult) -> dict[str, Any]:
        """The same answer as a value, for callers that write their own JSON."""
        return await self.intake.codec.finish(
            lambda: {"image": _picture(job, result).decode(), **answer(job, result)}
        )


def unwrap(body: object) -> object:
    """The ``input`` of a request's body. Raises ``RequestError``."""
    if not isinstance(body, dict) or "input" not in body:
        raise RequestError("invalid_parameter", 'the body must be {"input": {…}}', param="input")
    for name in sorted(body.keys() - _IGNORED_BESIDE_INPUT - {"input"}):
        if name not in _QUEUED_ONLY:
            raise _unknown(str(name), ["input"])
        if body[name] is not None:
            raise RequestError(
                "unknown_field",
                f"{name} is of RunPod's queue; here the answer comes at once, to the caller: leave it out",
                param=name,
            )
    return body["input"]


def answer(job: FlatJob, result: InferenceResult) -> dict[str, Any]:
    """Everything of an answer but ``image``."""
    return {
        "prompt": job.request.prompt,
        "num_inference_steps": result.steps,
        "lightning_enabled": result.lightning_enabled,
        "seed": result.seed,
        "model": result.model,
        "width": job.request.size[0],
        "height": job.request.size[1],
        "output_format": job.output_format,
    }


def refuse(error: ServingError, *, request_id: str, gpu_available: bool | None) -> tuple[int, dict[str, Any]]:
    """Status and body of an error: ``detail`` as the first clients know it, ``error`` and ``code`` beside.

    gpu_available: None where nobody has looked.
    """
    message = message_of(error)
    status = 400 if isinstance(error, MissingImage) else status_of(error)
    detail: object = message
    if status == 500:
        known = {} if gpu_available is None else {"device_count": int(gpu_available)}
        detail = {"error": message, "gpu_info": known}
    body = {"detail": detail, "error": message, "code": error.code, "request_id": request_id}
    return status, body if error.param is None else body | {"param": error.param}


def _picture(job: FlatJob, result: InferenceResult) -> bytes:
    text: bytes = pybase64.b64encode(encode(result.image, job.output_format, job.request.size))
    return text


def _render(job: FlatJob, result: InferenceResult) -> bytes:
    picture = _picture(job, result)
    # Joined: a JSON writer would only look at a million harmless characters once more.
    return b"".join((b'{"image":"', picture, b'",', orjson.dumps(answer(job, result))[1:]))


def _left(timeout: float | None, began: float) -> float | None:
    """Seconds of ``timeout`` that are left. Raises ``ExecutionError`` ``deadline_exceeded`` when none are."""
    if timeout is None:
        return None
    left = began + timeout - time.monotonic()
    if left <= 0:
        raise _too_late()
    return left


def _too_late() -> ExecutionError:
    return ExecutionError("deadline_exceeded", "the request's timeout passed before its pictures were read")


def _checked(job_input: object) -> FlatInput:
    try:
        return FlatInput.model_validate(job_input)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "extra_forbidden":
        raise _unknown(str(first["loc"][0]), FlatInput.model_fields)
    if not first["loc"]:
        raise RequestError("invalid_parameter", "input must be an object", param="input")
    field = ".".join(str(part) for part in first["loc"])
    reason = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    raise RequestError("invalid_parameter", f"{field} {reason}", param=field)


def _in_our_words(error: RequestError) -> RequestError:
    word = _OUR_WORDS.get(error.param or "")
    if word is None:
        return error
    assert error.param is not None
    return RequestError(error.code, error.message.replace(error.param, word, 1), param=word)


def _unknown(name: str, known: Iterable[str]) -> RequestError:
    """The caller's own word is not repeated: it could be anything."""
    names = list(known)
    near = difflib.get_close_matches(name[:100], names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return RequestError("unknown_field", f"a field is unknown; {hint}")


def _sources(wishes: FlatInput) -> list[ImageSource]:
    """The pictures in order. Empty strings count as absent: some clients send every field they know."""
    named: list[ImageSource] = []
    for suffix in ("", "_2", "_3"):
        for field in (f"image_url{suffix}", f"image_base64{suffix}"):
            content = getattr(wishes, field)
            if content:
                named.append(ImageSource(content, field))
                break
    ways = [named]
    ways.append([ImageSource(wishes.image, "image")] if wishes.image else [])
    ways.append([ImageSource(content, f"images.{at}") for at, content in enumerate(wishes.images or ())])
    used = [way for way in ways if way]
    if not used:
        raise MissingImage
    if len(used) > 1:
        raise RequestError(
            "invalid_parameter", "pictures are named in two ways; use image_url/image_base64, image or images"
        )
    return used[0]
