"""Reads a checkpoint in the diffusers folder layout, one component after another.

Safetensors only, and only classes named here: nothing of a checkpoint is ever executed.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers.utils.logging
import torch
import transformers.utils.logging
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

from core.errors import CapacityError
from core.pipeline import PipelineSpec
from pipelines.device import device_errors, pick_device
from pipelines.manager import ModelOptions, Report

_FILES = ["model_index.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.jinja"]


class PictureTextProcessor(Qwen2VLProcessor):  # type: ignore[misc]
    """Qwen's processor without its video part, which exists only for torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor=image_processor, tokenizer=tokenizer, **kwargs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Components:
    """A checkpoint in memory, on ``device``; the models are in ``dtype``, frozen, in evaluation mode."""

    transformer: Any
    vae: Any
    text_encoder: Any
    processor: Any
    solver: Any
    device: torch.device
    dtype: torch.dtype


def load_components(
    spec: PipelineSpec, options: ModelOptions, report: Report, *, pipeline_class: str
) -> Components:
    """Read the checkpoint of ``spec``, telling ``report`` which component is being read.

    pipeline_class: the diffusers class that the checkpoint must name as its own.
    Raises ``CapacityError`` ``not_ready`` with a sentence for the operator, ``OutOfDeviceMemory``, and
    whatever the libraries raise on damaged files.
    """
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    device = pick_device()
    # Many CPUs emulate bf16, slowly; and a CPU is where results are compared.
    dtype = torch.bfloat16 if device.type == "cuda" and options.precision == "bf16" else torch.float32
    report("checkpoint", 1, 5)
    folder = find_checkpoint(spec, options)
    _check_class(folder, spec, pipeline_class)
    source: Any = {"pretrained_model_name_or_path": folder, "local_files_only": True}
    weights: Any = {**source, "use_safetensors": True}
    with device_errors():
        report("processor", 2, 5)
        processor = read_processor(folder)
        solver = FlowMatchEulerDiscreteScheduler.from_pretrained(subfolder="scheduler", **source)
        report("text_encoder", 3, 5)
        text_encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            subfolder="text_encoder", dtype=dtype, **weights
        )
        text_encoder = _finish(text_encoder, device)
        report("transformer", 4, 5)
        transformer = QwenImageTransformer2DModel.from_pretrained(
            subfolder="transformer", dtype=dtype, **weights
        )
        transformer = _finish(transformer, device)
        report("vae", 5, 5)
        vae = AutoencoderKLQwenImage.from_pretrained(subfolder="vae", dtype=dtype, **weights)
        vae = _finish(vae, device)
    return Components(
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        processor=processor,
        solver=solver,
        device=device,
        dtype=dtype,
    )


def _finish(model: Any, device: torch.device) -> Any:
    """The last stages of a model that was read onto the host.

    Their order is fixed: an adapter is fused while the weights are whole, quantization comes after it, and
    only what is finished moves to the device.
    """
    return model.eval().requires_grad_(False).to(device)


def find_checkpoint(spec: PipelineSpec, options: ModelOptions) -> Path:
    """The checkpoint's folder: ``options.model_dir``, a built-in one, or a snapshot of the hub's.

    A hub source is ``owner/name`` or ``owner/name@revision``.
    """
    if options.model_dir is not None:
        return options.model_dir
    if spec.source.startswith("builtin:"):
        from pipelines.pocket.builder import build

        try:
            return build(options.cache_dir.expanduser())
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


def read_processor(folder: Path) -> PictureTextProcessor:
    """The processor of a checkpoint's folder; PIL does its resizing, with or without torchvision."""
    pictures = Qwen2VLImageProcessorPil.from_pretrained(folder, subfolder="processor", local_files_only=True)
    tokenizer = Qwen2Tokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
    return PictureTextProcessor(image_processor=pictures, tokenizer=tokenizer)


def _check_class(folder: Path, spec: PipelineSpec, expected: str) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise CapacityError(
            "not_ready",
            "there is no model_index.json in MODEL_DIR; name the folder of a diffusers checkpoint",
        )
    found = json.loads(index.read_text()).get("_class_name")
    if found != expected:
        raise CapacityError(
            "not_ready",
            f"the checkpoint is a {found} and {spec.name} needs a {expected}; "
            "make DEFAULT_MODEL and MODEL_DIR agree",
        )
