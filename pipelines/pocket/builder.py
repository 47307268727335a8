"""Writes the pocket checkpoint to disk: deterministic.

The folder is laid out like any diffusers checkpoint, so the code that loads real weights loads this.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from pipelines.pocket import architecture
from pipelines.pocket.folder import WEIGHTS, write_once
from pipelines.pocket.vocabulary import CONTROL_TOKENS, build_tokenizer

_GENERATE = {
    "_class_name": "QwenImagePipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "QwenImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLQwenImage"],
}
_EDIT = _GENERATE | {
    "_class_name": "QwenImageEditPlusPipeline",
    "processor": ["transformers", "Qwen2VLProcessor"],
}


def build(parent: Path) -> Path:
    """The editor's folder under ``parent``; see ``write_once``."""
    return write_once(parent, "pocket-edit", partial(_write, index=_EDIT))


def build_image(parent: Path) -> Path:
    """Like ``build``: the same weights in the layout of a model that makes pictures from a text alone.

    They were never trained for that.
    """
    return write_once(parent, "pocket-image", partial(_write, index=_GENERATE))


def _write(folder: Path, index: dict[str, Any]) -> None:
    tokenizer = build_tokenizer()
    text_encoder = Qwen2_5_VLForConditionalGeneration(text_encoder_config(tokenizer))
    transformer = QwenImageTransformer2DModel(**architecture.TRANSFORMER)
    latents = json.loads((WEIGHTS / "latents.json").read_text())
    vae = AutoencoderKLQwenImage(**architecture.VAE, **latents)
    for name, model in (("text_encoder", text_encoder), ("transformer", transformer), ("vae", vae)):
        model.bfloat16()
        model.load_state_dict(_trained(name, model))
        model.save_pretrained(folder / name, safe_serialization=True)
    FlowMatchEulerDiscreteScheduler(**architecture.SOLVER).save_pretrained(folder / "scheduler")
    if "processor" in index:
        Qwen2VLImageProcessorPil(**architecture.IMAGE_PROCESSOR).save_pretrained(folder / "processor")
        tokenizer.save_pretrained(folder / "processor")
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def text_encoder_config(tokenizer: Any) -> Qwen2_5_VLConfig:
    ids = dict(zip(CONTROL_TOKENS, tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS)), strict=True))
    return Qwen2_5_VLConfig(
        text_config={
            **architecture.TEXT,
            "vocab_size": len(tokenizer),
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config=architecture.VISION,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def _trained(name: str, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor of ``model`` from the repository's file for it.

    Two things are not in the files: the embedding that the text encoder's head shares, and those taps of
    the autoencoder's causal kernels that only ever meet the zeros before a single frame.
    """
    weights: dict[str, torch.Tensor] = load_file(WEIGHTS / f"{name}.safetensors")
    if name == "text_encoder":
        weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
    for key, value in model.state_dict().items():
        missing = value.shape[2] - weights[key].shape[2] if value.ndim == 5 else 0
        if missing:
            weights[key] = functional.pad(weights[key], (0, 0, 0, 0, missing, 0))
    return weights
