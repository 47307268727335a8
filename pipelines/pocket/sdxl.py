"""Writes ``pocket-sdxl`` to disk: the real SDXL architecture at the size of a test, with untrained weights.

Nothing of it is stored: every weight is drawn from its own name. Its pictures are patterns that follow
prompt, picture and seed; they show nothing.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from pipelines.pocket.clip_vocabulary import BEGIN, END, clip_vocabulary
from pipelines.pocket.drawing import redraw
from pipelines.pocket.folder import write_once

_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

_WIDTH = 32  # of each text encoder, and of the pooled embedding
_TIME_WIDTH = 8  # of each of the six numbers of size and crop

# Layout and flags of stabilityai/stable-diffusion-xl-base-1.0; widths and depths are what tests can afford.
_UNET: dict[str, Any] = {
    "sample_size": 16,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 2, 2),
    "cross_attention_dim": 2 * _WIDTH,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": _TIME_WIDTH,
    "projection_class_embeddings_input_dim": _WIDTH + 6 * _TIME_WIDTH,
    "use_linear_projection": True,
    "norm_num_groups": 8,
}
_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 16, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 128,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
# Source: scheduler/scheduler_config.json of stabilityai/stable-diffusion-xl-base-1.0.
SOLVER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
# At unit gain the first words and the second encoder hardly reach the picture, and colours saturate.
_GAINS = {
    "attn2.to_v.weight": 5.0,
    "attn2.to_out.0.weight": 4.0,
    "encoder.conv_out.weight": 2.0,
    "decoder.conv_out.weight": 0.5,
}
_WORDS = (
    "a an the of in on with and at by from photo photograph painting drawing sketch picture image cinematic "
    "shot portrait landscape red blue green yellow black white golden dark bright blurry low high quality "
    "detailed style cat dog horse bird fox house car boat tree forest river mountain lake beach city street "
    "sky cloud sun moon night day winter summer snow rain autumn flower garden garment robe hat face person "
    "woman man child italian priest racoon baby lamp road door window table chair wearing intricate"
)


def build(parent: Path) -> Path:
    """The checkpoint's folder under ``parent``; see ``write_once``."""
    return write_once(parent, "pocket-sdxl", _write)


def _write(folder: Path) -> None:
    vocabulary, merges = clip_vocabulary(_WORDS)
    for name, padding in (("tokenizer", END), ("tokenizer_2", "!")):
        tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=padding, model_max_length=77)
        tokenizer.save_pretrained(folder / name)
    parts = {
        "text_encoder": CLIPTextModel(_text_config(vocabulary, "quick_gelu")),
        "text_encoder_2": CLIPTextModelWithProjection(_text_config(vocabulary, "gelu")),
        "unet": UNet2DConditionModel(**_UNET),
        "vae": AutoencoderKL(**_VAE),
    }
    for name, model in parts.items():
        redraw(model, torch.bfloat16, _GAINS)
        model.save_pretrained(folder / name, safe_serialization=True)
    EulerDiscreteScheduler(**SOLVER).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(_INDEX, indent=2, sort_keys=True) + "\n")


def _text_config(vocabulary: dict[str, int], activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        projection_dim=_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_act=activation,
        bos_token_id=vocabulary[BEGIN],
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[END],
    )
