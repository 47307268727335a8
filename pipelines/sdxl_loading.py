"""Reads a checkpoint of the SDXL family, one component after another."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from core.errors import CapacityError
from core.spec import PipelineSpec
from pipelines.beside import find_denoiser
from pipelines.device import device_errors
from pipelines.loading import Loader
from pipelines.options import ModelOptions, Report
from pipelines.sdxl_solvers import read_solver


@dataclass(frozen=True, kw_only=True, slots=True)
class Components:
    """A checkpoint in memory, on ``device``; the models are frozen, in evaluation mode.

    encoders: (tokenizer, text model), twice. solver: to be copied, never stepped.
    dtype: of latents and embeddings. The autoencoder has its own, which may be wider.
    zero_negative: no negative prompt means zeros instead of an empty text.
    lightning: the denoiser is a few-step form. precision: how weights are held, as a sentence.
    """

    unet: Any
    vae: Any
    encoders: tuple[tuple[Any, Any], tuple[Any, Any]]
    solver: Any
    device: torch.device
    dtype: torch.dtype
    zero_negative: bool = True
    lightning: bool = False
    precision: str = ""


def load_components(spec: PipelineSpec, options: ModelOptions, report: Report) -> Components:
    """Read the checkpoint of ``spec``, telling ``report`` which component is being read.

    Raises ``CapacityError`` ``not_ready`` with a sentence for the operator, ``OutOfDeviceMemory``, and
    whatever the libraries raise on damaged files.
    """
    loader = Loader(spec, options, report, pipeline_class="StableDiffusionXLPipeline", stages=5)
    with device_errors():
        solver = read_solver(loader.folder, lightning=spec.lightning_steps is not None)
        first, second = (
            CLIPTokenizer.from_pretrained(loader.folder, subfolder=subfolder, local_files_only=True)
            for subfolder in ("tokenizer", "tokenizer_2")
        )
        encoders = (
            (first, loader.model(CLIPTextModel, "text_encoder", role="text")),
            (second, loader.model(CLIPTextModelWithProjection, "text_encoder_2", role="text")),
        )
        weights = None if spec.denoiser is None else find_denoiser(spec.denoiser, loader.options, report)
        unet = loader.model(UNet2DConditionModel, "unet", role="denoiser", weights=weights)
        if spec.lightning_lora is not None and spec.lightning_lora not in loader.fused:
            raise CapacityError(
                "not_ready",
                f"the LoRA of {spec.name} was not fused; choose a Lightning row that is a whole denoiser",
                retryable=False,
            )
        vae = loader.model(AutoencoderKL, "vae", role="vae")
    index = json.loads((loader.folder / "model_index.json").read_text())
    return Components(
        unet=unet,
        vae=vae,
        encoders=encoders,
        solver=solver,
        device=loader.device,
        dtype=loader.dtype,
        zero_negative=index.get("force_zeros_for_empty_prompt", True),
        lightning=spec.lightning_steps is not None,
        precision=loader.precision,
    )
