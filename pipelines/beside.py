"""What a row needs beside its checkpoint: another denoiser, or a Lightning LoRA. Knows no model library."""

from pathlib import Path

from core.errors import CapacityError
from core.spec import PipelineSpec
from pipelines.lightning_files import lightning_source
from pipelines.lora_files import LoraFile, LoraNotFound, find
from pipelines.lora_keys import BadLora
from pipelines.options import ModelOptions, Report
from pipelines.single_files import SUFFIX, locate

REMEDY = "put the file into LORA_DIR, or set USE_LIGHTNING_LORA=0"


def named(spec: PipelineSpec) -> list[str]:
    """The files, as ``single_files`` and ``lora_files`` have them."""
    return [text for text in (spec.denoiser, _lightning_of(spec)) if text is not None]


def find_files(spec: PipelineSpec, options: ModelOptions, report: Report) -> dict[str, Path]:
    """All of them by name, fetched if need be. Raises ``CapacityError`` ``not_ready``."""
    files = {}
    if spec.denoiser is not None:
        files[spec.denoiser] = find_denoiser(spec.denoiser, options, report)
    if (lora := find_lightning(spec, options, report)) is not None:
        files[lora.source] = lora.path
    return files


def find_denoiser(reference: str, options: ModelOptions, report: Report) -> Path:
    """A file of weights, as ``single_files`` has it. report: told the bytes that are fetched.

    Raises ``ValueError`` for a file of another kind, ``CapacityError`` ``not_ready`` when it is nowhere.
    """
    name = reference.rpartition("/")[2]
    if not name.endswith(SUFFIX):
        raise ValueError(f"{name} is not a safetensors file")
    try:
        return locate(reference, options, report)
    except CapacityError as error:
        raise CapacityError(
            "not_ready",
            f"{name} cannot be had: {error.message}; or put it into LORA_DIR",
            retryable=error.retryable,
        ) from None


def find_lightning(
    spec: PipelineSpec, options: ModelOptions, report: Report | None = None
) -> LoraFile | None:
    """The checked file of a row whose few steps need one; None for all others.

    Raises ``CapacityError`` ``not_ready`` with a remedy for the operator.
    """
    source = _lightning_of(spec)
    if source is None:
        return None
    name = f"the Lightning LoRA of {spec.name} for {spec.lightning_steps} steps"
    try:
        return find(source, options, report)
    except LoraNotFound as error:
        raise CapacityError(
            "not_ready", f"{name} cannot be had: {error}; {remedy_for(spec)}", retryable=error.retryable
        ) from None
    except BadLora as error:
        raise unusable(error, remedy_for(spec)) from None


def remedy_for(spec: PipelineSpec) -> str:
    """A row that is made by its LoRA has no form without it."""
    return REMEDY if spec.lightning_lora is None else "put the file into LORA_DIR, or choose another model"


def unusable(error: BadLora, remedy: str) -> CapacityError:
    sentence = f"the Lightning LoRA cannot be used: {error}; {remedy}"
    return CapacityError("not_ready", sentence, retryable=False)


def _lightning_of(spec: PipelineSpec) -> str | None:
    return spec.lightning_lora or lightning_source(spec.name, spec.lightning_steps)
