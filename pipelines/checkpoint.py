"""Where the files of a checkpoint are: a folder, one that this repository builds, or the model hub.

Safetensors only: nothing of a checkpoint is ever executed.
"""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import CapacityError
from core.spec import PipelineSpec
from pipelines import beside
from pipelines.importing import undisturbed
from pipelines.options import ModelOptions, Report, Silent
from pipelines.precision import role_of
from pipelines.shards import Part, survey, weigh_file

CHECKPOINT = ("model_index.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.jinja")
# One model in one folder, with what it needs to read pictures and texts.
VISION = ("*.json", "*.safetensors", "*.txt", "*.jinja")
# Of a checkpoint whose denoiser another file takes the place of.
WITHOUT_DENOISER = (
    "model_index.json",
    "*/*.json",
    "text_encoder*/*.safetensors",
    "vae/*.safetensors",
    "*/*.txt",
    "*/*.jinja",
)
# ``builtin:NAME``: writes the checkpoint under a folder, and returns where.
_BUILT_IN = {
    "pocket-edit": "pipelines.pocket.builder:build",
    "pocket-image": "pipelines.pocket.builder:build_image",
    "pocket-sdxl": "pipelines.pocket.sdxl:build",
    "pocket-dinov3": "pipelines.pocket.dinov3:build",
    "pocket-depth": "pipelines.pocket.depth:build",
    "pocket-sam3": "pipelines.pocket.sam3:build",
    "pocket-grounding-dino": "pipelines.pocket.grounding_dino:build",
}


@dataclass(frozen=True, slots=True)
class Found:
    """All that a load reads, on this machine.

    parts: those with weights, by name. files: what the row names beside its checkpoint, as it names them.
    """

    folder: Path
    parts: Mapping[str, Part]
    files: Mapping[str, Path] = field(default_factory=dict)


def find(spec: PipelineSpec, options: ModelOptions, report: Report) -> Found:
    """The checkpoint and all that is needed beside it, every weight file checked by its header."""
    if options.found is not None:
        return options.found
    folder = find_checkpoint(spec, options, report)
    parts = survey(folder)
    files = beside.find_files(spec, options, report)
    if spec.denoiser is not None:
        parts = {name: part for name, part in parts.items() if role_of(name) != "denoiser"}
        parts["denoiser"] = weigh_file(files[spec.denoiser])
    return Found(folder, parts, files)


def find_checkpoint(spec: PipelineSpec, options: ModelOptions, report: Report | None = None) -> Path:
    """The checkpoint's folder: what ``options`` name, a built-in one, or a snapshot of the hub's.

    A hub source is ``owner/name`` or ``owner/name@revision``; ``options.revision`` comes before the row's.
    report: told the bytes that are fetched.
    Raises ``CapacityError`` ``not_ready``.
    """
    if options.revision is not None and (options.model_dir or spec.source.startswith("builtin:")):
        raise CapacityError(
            "not_ready",
            f"MODEL_REVISION names a commit of the hub, and {spec.name} does not come from there; unset it",
            retryable=False,
        )
    if options.model_dir is not None:
        if not options.model_dir.is_dir():
            raise CapacityError(
                "not_ready", "MODEL_DIR is not a folder; name that of a checkpoint", retryable=False
            )
        return options.model_dir
    if spec.source.startswith("builtin:"):
        return _built(spec, options)
    from pipelines import hub

    repository, revision = spec.source_at(options.revision)
    return hub.snapshot(repository, revision, options, report or Silent(), patterns_of(spec))


def patterns_of(spec: PipelineSpec) -> tuple[str, ...]:
    """The files of the row's repository that a load reads."""
    if spec.vision is not None:
        return VISION
    return CHECKPOINT if spec.denoiser is None else WITHOUT_DENOISER


def _built(spec: PipelineSpec, options: ModelOptions) -> Path:
    module, _, function = _BUILT_IN[spec.source.removeprefix("builtin:")].partition(":")
    with undisturbed():
        build = getattr(importlib.import_module(module), function)
    try:
        return Path(build(options.cache_dir.expanduser()))
    except OSError as error:
        raise CapacityError(
            "not_ready",
            f"{spec.name} cannot be written to its cache folder ({error.strerror}); "
            "set CACHE_DIR to a folder with room that can be written to",
        ) from error


def check_class(folder: Path, spec: PipelineSpec, expected: str) -> None:
    found = json.loads(index_of(folder, spec).read_text()).get("_class_name")
    if found != expected:
        raise CapacityError(
            "not_ready",
            f"the checkpoint is a {found} and {spec.name} needs a {expected}; "
            "make DEFAULT_MODEL and MODEL_DIR agree",
            retryable=False,
        )


def index_of(folder: Path, spec: PipelineSpec) -> Path:
    """The file that makes a folder a checkpoint. Raises ``CapacityError`` ``not_ready``."""
    index = folder / spec.index
    if not index.is_file():
        raise CapacityError(
            "not_ready",
            f"there is no {spec.index} in the checkpoint's folder; let MODEL_DIR name one of {spec.name}",
            retryable=False,
        )
    return index
