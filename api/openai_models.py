"""``/v1/models``: one answer that OpenAI's clients and those of the SDXL service read alike."""

import math
import re
import time
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api.dialect import Answer, Arrival, Endpoint, Services
from api.errors import message_of
from api.openai_docs import ANSWERS
from api.openai_errors import openai_status, worded
from core.catalog import Catalog
from core.errors import RequestError, ServingError
from core.request import Task
from core.spec import PipelineSpec

# Before ``/v1``. The last is where RunPod has an endpoint's own routes for clients of OpenAI.
PREFIXES: Final = ("", "/openai", "/v2/{endpoint_id}/openai")
DOCUMENTED: Final = frozenset({"", "/openai"})

# Clients hold lists of these and let nobody add to them: each means whatever is served here.
_OPENAI_NAME: Final = re.compile(
    r"(openai/)?(dall-e-[23]|(gpt|chatgpt)-image(-[\w.-]{1,60})?)", re.IGNORECASE
)


def find(catalog: Catalog, name: str | None, task: Task | None = None) -> PipelineSpec:
    """The row of a name. For none, and for a name of OpenAI's own models, the default.

    task: where the default cannot do it, the first row that can stands in for it.
    Raises ``RequestError`` ``model_not_found``.
    """
    if name:
        try:
            return catalog.get(name)
        except RequestError:
            if not _OPENAI_NAME.fullmatch(name.strip()):
                raise
    if task is None or task in catalog.default.tasks:
        return catalog.default
    return next((spec for spec in catalog if task in spec.tasks), catalog.default)


def endpoints(services: Services) -> list[Endpoint]:
    started = int(time.time())

    async def listed(request: Request) -> Response:
        return _json(listing(services.catalog, started))

    async def one(request: Request) -> Response:
        name = str(request.path_params["id"])
        return _json(model(find(services.catalog, name), started, name))

    missing: dict[int | str, dict[str, Any]] = {404: ANSWERS[404]}
    text = {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "its name, an alias, or a name of OpenAI's own image models; case does not matter",
        "schema": {"type": "string", "pattern": r"^[A-Za-z0-9._:/@+-]+$"},
    }
    return [
        endpoint
        for prefix in PREFIXES
        for endpoint in (
            Endpoint(
                path=f"{prefix}/v1/models",
                handle=listed,
                methods=("GET",),
                summary="The models served here",
                refuse=refuse,
                documented=prefix in DOCUMENTED,
            ),
            Endpoint(
                path=f"{prefix}/v1/models/{{id:path}}",
                handle=one,
                methods=("GET",),
                summary="One model, by any of its names",
                responses=missing,
                openapi={"parameters": [text]},
                refuse=refuse,
                documented=prefix in DOCUMENTED,
            ),
        )
    ]


def listing(catalog: Catalog, created: int) -> dict[str, Any]:
    """``object`` and ``data`` are OpenAI's, ``default_model`` and ``models`` the SDXL service's."""
    return {
        "object": "list",
        "data": [model(spec, created, spec.name) for spec in catalog],
        "default_model": catalog.default.name,
        "models": [
            {
                "name": spec.name,
                "family": family(spec),
                "min_vram_gb": spec.vram_gb or 0.0,
                "resolution": f"best@{spec.vision.side if spec.vision else math.isqrt(spec.output_area)}",
                "tag": sorted(spec.tasks) + (["lightning"] if spec.lightning_steps else []),
            }
            for spec in catalog
        ],
    }


def model(spec: PipelineSpec, created: int, name: str) -> dict[str, Any]:
    owner = "batchmux" if spec.source.startswith("builtin:") else spec.source.split("/")[0]
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


def family(spec: PipelineSpec) -> str:
    """After the module that runs it: ``pipelines.sdxl:load`` is of the family ``sdxl``."""
    return spec.factory.partition(":")[0].rpartition(".")[2].replace("_", "-")


def refuse(error: ServingError, arrival: Arrival) -> Answer:
    """OpenAI's clients look into ``error``, those of the SDXL service into ``detail``."""
    body = {"error": worded(error), "detail": message_of(error)}
    return Answer(orjson.dumps(body), openai_status(error))


def _json(body: object) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
