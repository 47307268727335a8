"""The flat dialect of ``/run`` and ``/runsync``, which the RunPod worker speaks too.

``{"input": {…}}`` in, ``{"image": base64, "prompt", "num_inference_steps", …}`` out. It knows status
codes where its contract fixes them, and nothing else of HTTP.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import orjson
import pybase64

from api.asking import ask_with_pictures
from api.errors import message_of, status_of
from api.flat_fields import FlatInput, mask_source, picture_sources
from api.images import ImageFormat
from api.intake import ImageIntake
from api.json_fields import checked, unknown
from core.catalog import Catalog
from core.errors import RequestError, ServingError
from core.request import InferenceRequest, Task
from core.result import InferenceResult
from core.spec import PipelineSpec

FALLBACK_PROMPT: Final = "Enhance the image"

# What RunPod's own API defines beside ``input``: a name is harmless, the others ask for something.
_IGNORED_BESIDE_INPUT: Final = frozenset({"id"})
_QUEUED_ONLY: Final = frozenset({"webhook", "policy", "s3Config"})

# A dialect's own word for what ``PipelineSpec.request`` calls otherwise.
_OUR_WORDS: Final = {"steps": "num_inference_steps", "cfg": "true_cfg_scale"}


class MissingImage(RequestError):
    """Its status and text are fixed by the dialect's first clients."""

    def __init__(self) -> None:
        super().__init__("invalid_parameter", "Either image_url or image_base64 required", param="image_url")


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
        prompt_fallback: stands in for an absent prompt beside a picture; None refuses.
        Raises ``RequestError`` naming field, limit and remedy, never the caller's input,
        ``CapacityError`` when too much is being read already, and ``ExecutionError``
        ``deadline_exceeded`` when nothing is left.
        """
        began = time.monotonic() if arrived is None else arrived
        wishes = checked(FlatInput, job_input, "input")
        if wishes.prompt is None and prompt_fallback is None:
            raise _no_prompt()
        sources, mask = picture_sources(wishes), mask_source(wishes)
        spec = self.catalog.get(wishes.model)
        if wishes.model is None and spec.vision is not None:  # it looks at pictures; the caller means another
            spec = self.catalog.able(Task.EDIT if sources else Task.GENERATE)
        task = _task(spec, pictures=len(sources))
        prompt = wishes.prompt
        if prompt is None and sources:
            prompt = prompt_fallback  # it speaks of a picture
        if prompt is None:
            raise _no_prompt()
        ask = partial(
            spec.request,
            id=id,
            task=task,
            prompt=prompt,
            negative_prompt=wishes.negative_prompt,
            width=wishes.width or None,  # clients in Go send the zero of a field that is not set
            height=wishes.height or None,
            steps=wishes.num_inference_steps,
            cfg=wishes.true_cfg_scale,
            seed=wishes.seed,
            strength=wishes.strength,
            adapters=wishes.adapters,
            step_cache=wishes.step_cache,
            timeout=self.timeout if wishes.timeout is None else wishes.timeout,
        )
        request = await ask_with_pictures(ask, self.intake, sources, mask, arrived=began, words=_OUR_WORDS)
        return FlatJob(request, wishes.output_format or self.output_format)

    async def render(self, job: FlatJob, result: InferenceResult) -> bytes:
        """The answer as JSON text; resized, encoded and joined in the codec's threads."""
        return await self.intake.codec.finish(partial(self._render, job, result))

    async def render_output(self, job: FlatJob, result: InferenceResult) -> dict[str, Any]:
        """The same answer as a value, for callers that write their own JSON."""
        return await self.intake.codec.finish(
            lambda: {"image": self._picture(job, result).decode(), **answer(job, result)}
        )

    def _picture(self, job: FlatJob, result: InferenceResult) -> bytes:
        text: bytes = pybase64.b64encode(self.intake.file(job.request, result, job.output_format))
        return text

    def _render(self, job: FlatJob, result: InferenceResult) -> bytes:
        picture = self._picture(job, result)
        # Joined: a JSON writer would only look at a million harmless characters once more.
        return b"".join((b'{"image":"', picture, b'",', orjson.dumps(answer(job, result))[1:]))


def unwrap(body: object) -> object:
    """The ``input`` of a request's body. Raises ``RequestError``."""
    if not isinstance(body, dict) or "input" not in body:
        raise RequestError("invalid_parameter", 'the body must be {"input": {…}}', param="input")
    for name in sorted(body.keys() - _IGNORED_BESIDE_INPUT - {"input"}):
        if name not in _QUEUED_ONLY:
            raise unknown(str(name), ["input"])
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


def _no_prompt() -> RequestError:
    return RequestError("invalid_parameter", "prompt is required; say what to do", param="prompt")


def _task(spec: PipelineSpec, *, pictures: int) -> Task:
    """A picture is edited where the model can do that; without one it makes one. Raises ``MissingImage``."""
    if Task.GENERATE not in spec.tasks:
        if not pictures:
            raise MissingImage
        return Task.EDIT
    return Task.EDIT if pictures and Task.EDIT in spec.tasks else Task.GENERATE
