"""The four kinds of models of the vision service, and which row of ours is meant by a name or by none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from api.vision_fields import (
    DepthAnythingBody,
    Dinov3Body,
    GroundingDinoBody,
    Sam3Body,
    VisionBody,
    fault,
)
from core.catalog import Catalog
from core.errors import RequestError
from core.request import Task
from core.spec import PipelineSpec


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the service's models. slug: in the address; name: in JSON and of jobs."""

    name: str
    slug: str
    task: Task
    body: type[VisionBody]
    summary: str


KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("sam3", "sam3", Task.SEGMENT, Sam3Body, "Masks of every instance of what is named"),
        Kind(
            "grounding_dino", "grounding-dino", Task.DETECT, GroundingDinoBody, "Boxes around what is named"
        ),
        Kind("depth_anything", "depth-anything", Task.DEPTH, DepthAnythingBody, "How far everything is"),
        Kind("dinov3", "dinov3", Task.EMBED, Dinov3Body, "Features of pictures and their patches"),
    )
}


def find(catalog: Catalog, name: str | None, task: Task) -> PipelineSpec:
    """The row of a name, or the usual one. Raises ``RequestError`` that says what is served."""
    if name is None:
        return catalog.able(task)
    served = [spec.name for spec in catalog if task in spec.tasks]
    known = f"served here to {task}: {', '.join(served) or 'none'}"
    try:
        spec = catalog.get(name)
    except RequestError:
        raise RequestError("model_not_found", f"no such model here; {known}", param="model_id") from None
    if task not in spec.tasks:
        raise fault("model_id", f"{spec.name} cannot {task}; {known}")
    return spec


def kinds_of(catalog: Catalog, names: Sequence[str]) -> list[str]:
    """The kinds of which one of these models is."""
    tasks = {task for spec in catalog if spec.name in names for task in spec.tasks}
    return [kind.name for kind in KINDS.values() if kind.task in tasks]
