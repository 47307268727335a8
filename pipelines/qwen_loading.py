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
from pipelines.loading import Loader
from pipelines.options import ModelOptions, Report


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
    loader = Loader(spec, options, report, pipeline_class=pipeline_class, stages=5)
    with device_errors():
        loader.stage("processor")
        processor = read_processor(loader.folder)
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
        solver=solver,
        device=loader.device,
        dtype=loader.dtype,
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
    tokenizer = Qwen2Tokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
    return PictureTextProcessor(image_processor=pictures, tokenizer=tokenizer)
