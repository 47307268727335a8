"""Reads a checkpoint of the Qwen-Image family, one component after another."""

import weakref
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

from core.spec import PipelineSpec
from pipelines.device import device_errors
from pipelines.lightning import few_step_solver
from pipelines.loading import Loader
from pipelines.options import ModelOptions, Report


class PictureTextProcessor(Qwen2VLProcessor):  # type: ignore[misc]
    """Qwen's processor without its video part, which exists only for torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor=image_processor, tokenizer=tokenizer, **kwargs)


@dataclass(frozen=True, slots=True)
class TextProcessor:
    """In place of a processor for a checkpoint that is never shown a picture, and so has none."""

    tokenizer: Any
    image_processor: None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Components:
    """A checkpoint in memory, to run on ``device``; all that is not quantized is in ``dtype``.

    precision: how its weights are held and multiplied, as a sentence.
    lightning: a Lightning LoRA is part of the transformer, and the solver has its schedule.
    """

    transformer: Any
    vae: Any
    text_encoder: Any
    processor: Any
    solver: Any
    device: torch.device
    dtype: torch.dtype
    precision: str = ""
    lightning: bool = False


def load_components(
    spec: PipelineSpec,
    options: ModelOptions,
    report: Report,
    *,
    pipeline_class: str,
    sees_pictures: bool = True,
) -> Components:
    """Read the checkpoint of ``spec``, telling ``report`` which component is being read.

    pipeline_class: the diffusers class that the checkpoint must name as its own.
    sees_pictures: it has a processor of pictures, not a tokenizer alone.
    Raises ``CapacityError`` ``not_ready`` with a sentence for the operator, ``OutOfDeviceMemory``, and
    whatever the libraries raise on damaged files.
    """
    # Its activations exceed fp16. Source: ``supported_inference_dtypes`` of QwenImage in ComfyUI's
    # ``supported_models.py``, and the black pictures of Comfy-Org/ComfyUI#10751.
    loader = Loader(spec, options, report, pipeline_class=pipeline_class, stages=5, half_overflows=True)
    with device_errors():
        loader.stage("processor" if sees_pictures else "tokenizer")
        processor = (read_processor if sees_pictures else read_text_processor)(loader.folder)
        solver = FlowMatchEulerDiscreteScheduler.from_pretrained(
            loader.folder, subfolder="scheduler", local_files_only=True
        )
        text_encoder = loader.model(Qwen2_5_VLForConditionalGeneration, "text_encoder", role="text")
        transformer = loader.model(QwenImageTransformer2DModel, "transformer", role="denoiser")
        keep_tables(transformer.pos_embed)
        vae = loader.model(AutoencoderKLQwenImage, "vae", role="vae")
    return Components(
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        processor=processor,
        solver=few_step_solver(solver) if loader.fused else solver,
        device=loader.device,
        dtype=loader.dtype,
        precision=loader.precision,
        lightning=bool(loader.fused),
    )


def keep_tables(rope: Any) -> None:
    """Keep the rotary tables of a transformer with it alone.

    diffusers remembers them in caches of the class, by instance, on host and device: those of every model
    that was ever loaded would stay.
    """
    for name in ("_get_device_freqs", "_compute_video_freqs"):
        plain = getattr(type(rope), name).__wrapped__
        setattr(rope, name, lru_cache(128)(partial(plain, weakref.proxy(rope))))


def read_processor(folder: Path) -> PictureTextProcessor:
    """The processor of a checkpoint's folder; PIL does its resizing, with or without torchvision."""
    pictures = Qwen2VLImageProcessorPil.from_pretrained(folder, subfolder="processor", local_files_only=True)
    return PictureTextProcessor(image_processor=pictures, tokenizer=_read_tokenizer(folder))


def read_text_processor(folder: Path) -> TextProcessor:
    return TextProcessor(_read_tokenizer(folder))


def _read_tokenizer(folder: Path) -> Any:
    return Qwen2Tokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
