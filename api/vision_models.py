"""``/models/…``: which of the vision service's models are in memory; loading and unloading them."""

from collections.abc import Callable
from typing import Any, Final, Literal

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from api.control import Control, Work
from api.dialect import Endpoint, Services
from api.fields import FAULTS, Wire, body_of, checked
from api.json_fields import Text
from api.vision_kinds import KINDS, Kind, find
from api.vision_service import refuse
from core.catalog import Catalog
from core.errors import RequestError
from core.service import Health, LoadedModel
from core.spec import PipelineSpec

KindName = Literal["sam3", "grounding_dino", "depth_anything", "dinov3"]
IGNORED: Final = {"device": "a server has one device; model_info tells which"}
_MIB: Final = 2**20
_INFO: Final = {
    "type": "object",
    "required": ["model_type", "model_id", "device", "loaded", "memory_mb"],
    "properties": {
        "model_type": {"enum": list(KINDS)},
        "model_id": {"type": ["string", "null"], "description": "null: none is served for this"},
        "device": {"enum": ["cuda", "cpu"]},
        "loaded": {"type": "boolean"},
        "memory_mb": {"type": ["number", "null"]},
    },
}
_TEXT: Final = {"type": "string"}


class LoadBody(Wire):
    model_type: KindName
    model_id: Text | None = Field(None, max_length=200, description="name, alias or hub id; else the usual")
    device: Text | None = Field(None, max_length=40, description=f"ignored: {IGNORED['device']}")


class UnloadBody(Wire):
    model_type: KindName


def endpoints(services: Services) -> list[Endpoint]:
    models = VisionModels(services)

    def control(path: str, work: Work, summary: str, body: type[Wire] | None, **told: Any) -> Endpoint:
        return Endpoint(
            path=f"/models/{path}",
            handle=Control(services, work, refuse),
            speaks="vision_models",
            summary=summary,
            openapi={} if body is None else {"requestBody": body_of(body)},
            responses={**FAULTS, **_answers(**told)},
        )

    return [
        Endpoint(
            path="/models/status",
            handle=_probe(models.status),
            methods=("GET",),
            summary="Which vision models are in memory",
            responses=_answers(
                models={"type": "object", "additionalProperties": _INFO},
                total_memory_mb={"type": ["number", "null"]},
            ),
            control=True,
            refuse=refuse,
            speaks="vision_models",
        ),
        control("load", models.load, "Load a model", LoadBody, message=_TEXT, model_info=_INFO),
        control("unload", models.unload, "Throw a model out of memory", UnloadBody, message=_TEXT),
        control("unload-all", models.unload_all, "Throw all models out of memory", None, message=_TEXT),
    ]


class VisionModels:
    def __init__(self, services: Services) -> None:
        self._services = services

    def status(self) -> dict[str, Any]:
        health = self._services.health()
        found = {kind.name: info(kind, self._services.catalog, health) for kind in KINDS.values()}
        total = sum(each["memory_mb"] or 0.0 for each in found.values())
        return {"models": found, "total_memory_mb": total or None}

    async def load(self, content: object) -> dict[str, Any]:
        """Answers once it is in memory. Raises ``ServingError`` that says why it cannot be."""
        body = checked(LoadBody, content)
        kind = KINDS[body.model_type]
        spec = find(self._services.catalog, body.model_id, kind.task)
        await self._services.load(spec.name)
        told = _told(kind, spec, self._services.health())
        return {"message": f"Model {kind.name} loaded successfully", "model_info": told}

    async def unload(self, content: object) -> dict[str, Any]:
        """Every model of the kind; of one that is not in memory it is true already."""
        kind = KINDS[checked(UnloadBody, content).model_type]
        for spec in self._services.catalog:
            if kind.task in spec.tasks and spec.name in self._services.health().loaded:
                await self._services.purge(spec.name)
        return {"message": f"Model {kind.name} unloaded successfully"}

    async def unload_all(self, content: object) -> dict[str, Any]:
        if content != {}:
            raise RequestError("invalid_parameter", "this takes no body; send none")
        await self._services.purge(None)
        return {"message": "All models unloaded successfully"}


def info(kind: Kind, catalog: Catalog, health: Health) -> dict[str, Any]:
    """Of the model of this kind that was used last, else of the one that would be."""
    able = {spec.name: spec for spec in catalog if kind.task in spec.tasks}
    loaded = [name for name in health.loaded if name in able]
    if loaded:
        return _told(kind, able[loaded[-1]], health)
    return _told(kind, catalog.able(kind.task) if able else None, health)


def _told(kind: Kind, spec: PipelineSpec | None, health: Health) -> dict[str, Any]:
    model = _in_memory(spec, health)
    return {
        "model_type": kind.name,
        "model_id": None if spec is None else spec.model_id,
        "device": "cuda" if health.gpu_available else "cpu",
        "loaded": model is not None,
        "memory_mb": None if model is None else round(model.bytes / _MIB, 1),
    }


def _in_memory(spec: PipelineSpec | None, health: Health) -> LoadedModel | None:
    return next((model for model in health.models if spec is not None and model.name == spec.name), None)


def _answers(**properties: Any) -> dict[int | str, dict[str, Any]]:
    schema = {"type": "object", "required": list(properties), "properties": properties}
    return {200: {"description": "Done", "content": {"application/json": {"schema": schema}}}}


def _probe(answer: Callable[[], dict[str, Any]]) -> Any:
    async def handle(request: Request) -> Response:
        return Response(orjson.dumps(answer()), media_type="application/json")

    return handle
