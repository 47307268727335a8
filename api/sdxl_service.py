"""The SDXL service's contract: ``POST /v1/generate``, ``POST /v1/models/purge`` and the end of its jobs.

A picture is answered as a URL; the route that serves it, and the list of models, are elsewhere.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from pydantic import AliasChoices, Field, StrictBool
from starlette.requests import Request
from starlette.responses import Response

from api.body import parse_json
from api.control import Control
from api.dialect import Answer, Arrival, Endpoint, Services
from api.fields import FAULTS, Wire, as_fault, body_of, checked, worded
from api.json_fields import Number, Text, WholeNumber
from api.route import Route
from core.errors import RequestError, ServingError
from core.request import InferenceRequest, Task
from core.result import InferenceResult
from core.spec import PipelineSpec

NEGATIVE_PROMPT: Final = "low quality, bad anatomy, nsfw, watermark"
MULTIPLE: Final = 8  # of both sides

_SENTENCES: Final = {
    "deadline_exceeded": "Generation timeout exceeded",
    "pipeline_error": "Internal generation error",
    "output_too_large": "Internal generation error",
}


class Params(Wire):
    """Absent and null leave the choice to the model: a few-step one is spoilt by 25 steps."""

    width: WholeNumber | None = Field(None, ge=64, le=2048, description="in pixels, a multiple of 8")
    height: WholeNumber | None = Field(None, ge=64, le=2048, description="in pixels, a multiple of 8")
    steps: WholeNumber | None = Field(None, ge=1, le=100)
    cfg: Number | None = Field(None, ge=0, le=20, description="0 and 1 mean unguided")
    seed: WholeNumber | None = Field(None, description="absent, null and -1 mean a random one")
    model: Text | None = Field(None, max_length=200, description="hub id, name or alias")


class Safety(Wire):
    """Accepted, and of no effect: nothing here looks at pictures."""

    allow_mature_implicit: StrictBool = False


class Metadata(Wire):
    """Accepted, and kept nowhere."""

    project_id: Text | WholeNumber | None = None
    agent_id: Text | WholeNumber | None = None


class GenerateBody(Wire):
    prompt: Text = Field(description="what to show")
    negative_prompt: Text | None = Field(
        None, description=f"absent and null mean {NEGATIVE_PROMPT!r}; empty means none"
    )
    params: Params | None = None
    safety: Safety | None = None
    metadata: Metadata | None = Field(None, validation_alias=AliasChoices("metadata", "metada"))


class PurgeBody(Wire):
    model_id: Text | None = Field(None, max_length=200, description="absent and null mean every model")


class RuleFault(RequestError):
    """What its first clients know as a 400, by these texts."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__("invalid_parameter", message, param=param)


def endpoints(services: Services) -> list[Endpoint]:
    return [
        Endpoint(
            path="/v1/generate",
            handle=Route(services, SdxlService(services)),
            summary="Make a picture, answered as a URL",
            openapi={"requestBody": body_of(GenerateBody)},
            responses={**FAULTS, 507: {"description": "No room for another picture"}},
        ),
        Endpoint(
            path="/v1/models/purge",
            # Not ``control``: a call can cost the device a model's loading, so a key's limit holds for it.
            handle=Control(services, Purging(services), refuse),
            summary="Throw models out of memory",
            speaks="sdxl_service",
            openapi={"requestBody": body_of(PurgeBody, required=False)},
            responses=FAULTS,
        ),
        Endpoint(
            path="/v1/jobs/{job_id}",
            handle=_deprecated,
            refuse=refuse,
            methods=("GET",),
            summary="No longer there: /v1/generate answers at once",
            openapi={
                "parameters": [
                    {
                        "name": "job_id",
                        "in": "path",
                        "required": True,
                        "description": "any; none is looked up",
                        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"},
                    }
                ]
            },
            responses={
                404: {"description": "The path is longer than one id"},
                410: {"description": "Always, whatever the id"},
            },
        ),
    ]


@dataclass(frozen=True, slots=True)
class SdxlCall:
    """``model`` is the name to answer with: the caller's own where it sent one."""

    request: InferenceRequest
    model: str
    started: float

    @property
    def requests(self) -> tuple[InferenceRequest, ...]:
        return (self.request,)


class SdxlService:
    """See ``api.dialect.Dialect``."""

    def __init__(self, services: Services) -> None:
        self._catalog = services.catalog
        self._intake = services.intake
        self._files = services.files
        self._timeout = services.options.generation_timeout or services.options.timeout

    def read(self, body: bytes, arrival: Arrival) -> object:
        return parse_json(body)

    async def parse(self, content: object, arrival: Arrival) -> SdxlCall:
        wishes = checked(GenerateBody, content)
        params = wishes.params or Params()
        if not wishes.prompt.strip():
            raise RuleFault("Prompt cannot be empty", "prompt")
        if any(side and side % MULTIPLE for side in (params.width, params.height)):
            raise RuleFault("Width and height must be multiples of 8", "params.width")
        spec = self._spec(params.model)
        try:
            request = spec.request(
                id=arrival.id,
                task=Task.GENERATE,
                prompt=wishes.prompt,
                negative_prompt=NEGATIVE_PROMPT if wishes.negative_prompt is None else wishes.negative_prompt,
                width=params.width,
                height=params.height,
                steps=params.steps,
                cfg=params.cfg,
                seed=params.seed,
                timeout=self._timeout,
            )
        except RequestError as error:
            raise _by_rule(error, params, spec) from None
        return SdxlCall(request, params.model or spec.model_id, arrival.started)

    def _spec(self, name: str | None) -> PipelineSpec:
        if name is None:
            return self._catalog.able(Task.GENERATE)
        try:
            spec = self._catalog.get(name)
        except RequestError:
            spec = None
        if spec is None or Task.GENERATE not in spec.tasks:
            raise RuleFault(f"Model '{_printable(name)}' not allowed", "params.model")
        return spec

    async def render(self, call: SdxlCall, results: Sequence[InferenceResult]) -> Answer:
        (result,) = results
        picture = await self._intake.encode_result(call.request, result, "png")
        image_id = await self._files.put(picture, "png")
        image = {
            "image_id": image_id,
            # Without BASE_URL an address of this server's own, from its root.
            "url": self._files.url(image_id, "png", origin=""),
            "seed": result.seed,
        }
        audit = {
            "policy": "standard",
            "model": call.model,
            "duration_sec": f"{time.monotonic() - call.started:.3f}",
        }
        body = {"status": "completed", "images": [image], "audit": audit, "error": None}
        return Answer(orjson.dumps(body))

    def refuse(self, error: ServingError, arrival: Arrival) -> Answer:
        return refuse(error, arrival)


class Purging:
    """``work`` of ``POST /v1/models/purge``."""

    def __init__(self, services: Services) -> None:
        self._purge = services.purge

    async def __call__(self, content: object) -> dict[str, Any]:
        name = checked(PurgeBody, content).model_id
        removed, remaining = await self._purge(name)
        answer: dict[str, Any] = {"model_id": name, "removed": removed, "remaining": remaining}
        return answer if removed or remaining else answer | {"note": "cache empty"}


def refuse(error: ServingError, arrival: Arrival) -> Answer:
    status = 400 if isinstance(error, RuleFault) else None
    return worded(error, arrival, status=status, message=_SENTENCES.get(error.code))


async def _deprecated(request: Request) -> Response:
    raise RequestError("expired", "Endpoint deprecated: generation is synchronous now")


def _by_rule(error: RequestError, params: Params, spec: PipelineSpec) -> ServingError:
    """The model's own limits, in the contract's sentences where it has one that is true."""
    if error.param in ("steps", "cfg"):
        return RuleFault("Steps/CFG exceed allowed limits", f"params.{error.param}")
    if error.param in ("width", "height"):
        too_large = max(params.width or 0, params.height or 0) > spec.max_side
        sentence = f"Max size is {spec.max_side}x{spec.max_side}" if too_large else error.message
        return RuleFault(sentence, f"params.{error.param}")
    return as_fault(error, {"seed": ("params", "seed")})


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() and letter not in "<>&" else "?" for letter in name[:100])
