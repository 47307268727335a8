"""Writes the pocket checkpoint to disk: deterministic, whole or not at all.

The folder is laid out like any diffusers checkpoint, so the code that loads real weights loads this.
"""

import hashlib
import json
import math
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
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
from pipelines.pocket.vocabulary import CONTROL_TOKENS, build_tokenizer

_WEIGHTS = Path(__file__).parent / "weights"  # trained by ``training/``; see the model card beside them

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

# Where unit gain is not enough, by the end of the tensor's name. Attention over hundreds of random tokens
# averages everything away: sharper scores and larger values let prompt and references show in the picture.
_GAINS = {
    "norm_q.weight": 2.0,
    "norm_k.weight": 2.0,
    "norm_added_q.weight": 2.0,
    "norm_added_k.weight": 2.0,
    "attn.add_v_proj.weight": 4.0,
    "attn.to_v.weight": 2.0,
    "decoder.conv_out.weight": 0.7,
}


def content_version() -> str:
    """Names what a build gives: the recipe is this package's own source and weights."""
    recipe = hashlib.sha256()
    for file in sorted([*Path(__file__).parent.glob("*.py"), *_WEIGHTS.iterdir()]):
        recipe.update(file.read_bytes())
    return recipe.hexdigest()[:12]


def build(parent: Path) -> Path:
    """The editor's folder under ``parent``, made now unless this recipe was built there before.

    Raises ``OSError`` when ``parent`` cannot be written to.
    """
    return _build(parent, "pocket-edit", _EDIT)


def build_image(parent: Path) -> Path:
    """Like ``build``: the same weights in the layout of a model that makes pictures from a text alone.

    They were never trained for that.
    """
    return _build(parent, "pocket-image", _GENERATE)


def _build(parent: Path, name: str, index: dict[str, Any]) -> Path:
    folder = parent / f"{name}-{content_version()}"
    if folder.is_dir():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
    try:
        _write(unfinished, index)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was first; its bytes are the same
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write(folder: Path, index: dict[str, Any]) -> None:
    tokenizer = build_tokenizer()
    text_encoder = Qwen2_5_VLForConditionalGeneration(text_encoder_config(tokenizer))
    transformer = QwenImageTransformer2DModel(**architecture.TRANSFORMER)
    latents = json.loads((_WEIGHTS / "latents.json").read_text())
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
    for path in folder.rglob("*"):  # save_pretrained leaves some files readable to their owner alone
        path.chmod(0o755 if path.is_dir() else 0o644)
    folder.chmod(0o755)


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
    weights: dict[str, torch.Tensor] = load_file(_WEIGHTS / f"{name}.safetensors")
    if name == "text_encoder":
        weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
    for key, value in model.state_dict().items():
        missing = value.shape[2] - weights[key].shape[2] if value.ndim == 5 else 0
        if missing:
            weights[key] = functional.pad(weights[key], (0, 0, 0, 0, missing, 0))
    return weights


def redraw(model: torch.nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """Fresh weights at unit gain, each tensor from a seed of its own name.

    The libraries' own initialisation (deviation .02, zeroed outputs) gives near-constant pictures, on
    which a comparison of two implementations could not fail.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.data = weight.data.to(dtype)
            gain = next((value for end, value in _GAINS.items() if name.endswith(end)), 1.0)
            if name.endswith("bias"):
                weight.zero_()
            elif name.endswith("gamma") or weight.ndim == 1:
                weight.fill_(gain)
            else:
                draw = np.random.default_rng(zlib.crc32(name.encode()))
                values = draw.standard_normal(tuple(weight.shape), dtype=np.float32)
                weight.copy_(torch.from_numpy(values * gain / math.sqrt(_inputs(name, weight))))


def _inputs(name: str, weight: torch.Tensor) -> int:
    """How many values each output of ``weight`` sums up."""
    if name.endswith("embed_tokens.weight"):
        return 1
    taps = math.prod(weight.shape[1:])
    if weight.ndim == 5 and "patch_embed" not in name:
        return taps // weight.shape[2]  # of a causal kernel only the last tap in time meets a still picture
    return taps
