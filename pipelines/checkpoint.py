"""Where the files of a checkpoint are: a folder, one that this repository builds, or the model hub.

Safetensors only: nothing of a checkpoint is ever executed.
"""

import importlib
import json
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from core.errors import CapacityError
from core.spec import PipelineSpec
from pipelines.options import ModelOptions

_FILES = ["model_index.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.jinja"]
# ``builtin:NAME``: writes the checkpoint under a folder, and returns where.
_BUILT_IN = {
    "pocket-edit": "pipelines.pocket.builder:build",
    "pocket-image": "pipelines.pocket.builder:build_image",
    "pocket-sdxl": "pipelines.pocket.sdxl:build",
}
# Where a denoiser of its own takes their place.
_DENOISERS = ["unet/*.safetensors", "transformer/*.safetensors"]


def find_checkpoint(spec: PipelineSpec, options: ModelOptions) -> Path:
    """The checkpoint's folder: ``options.model_dir``, a built-in one, or a snapshot of the hub's.

    A hub source is ``owner/name`` or ``owner/name@revision``.
    """
    if options.model_dir is not None:
        return options.model_dir
    if spec.source.startswith("builtin:"):
        module, _, function = _BUILT_IN[spec.source.removeprefix("builtin:")].partition(":")
        build = getattr(importlib.import_module(module), function)
        try:
            return Path(build(options.cache_dir.expanduser()))
        except OSError as error:
            raise CapacityError(
                "not_ready",
                f"{spec.name} cannot be written to its cache folder ({error.strerror}); "
                "set CACHE_DIR to a folder with room that can be written to",
            ) from error
    repository, _, revision = spec.source.partition("@")
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=_FILES,
                ignore_patterns=None if spec.denoiser is None else _DENOISERS,
                local_files_only=options.local_only,
                token=options.token,
            )
        )
    except LocalEntryNotFoundError:
        raise CapacityError(
            "not_ready",
            f"{repository} is not in the local cache and cannot be fetched; unset LOCAL_ONLY and check the "
            "network, or point MODEL_DIR at a copy",
        ) from None


def find_file(reference: str, options: ModelOptions) -> Path:
    """One file of weights, ``owner/name/file.safetensors``: baked in, or from the hub.

    Raises ``ValueError`` for a file of another kind, ``CapacityError`` ``not_ready`` when it is nowhere.
    """
    owner, name, file = reference.split("/", 2)
    if not file.endswith(".safetensors"):
        raise ValueError(f"{file} is not a safetensors file")
    if options.lightning.folder is not None:
        baked = options.lightning.folder / Path(file).name
        if baked.is_file():
            return baked
    try:
        return Path(
            hf_hub_download(f"{owner}/{name}", file, local_files_only=options.local_only, token=options.token)
        )
    except LocalEntryNotFoundError:
        raise CapacityError(
            "not_ready",
            f"{reference} is not in the local cache and cannot be fetched; unset LOCAL_ONLY and check the "
            "network, or put the file into LORA_DIR",
        ) from None


def check_class(folder: Path, spec: PipelineSpec, expected: str) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise CapacityError(
            "not_ready",
            "there is no model_index.json in MODEL_DIR; name the folder of a diffusers checkpoint",
            retryable=False,
        )
    found = json.loads(index.read_text()).get("_class_name")
    if found != expected:
        raise CapacityError(
            "not_ready",
            f"the checkpoint is a {found} and {spec.name} needs a {expected}; "
            "make DEFAULT_MODEL and MODEL_DIR agree",
            retryable=False,
        )
