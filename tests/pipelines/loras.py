"""LoRA files made in tests, in every layout that they are published in."""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Pairs = dict[str, tuple[Tensor, Tensor]]  # by layer: down [rank, inputs], up [outputs, rank]
ALPHA = 6.0  # of a rank of 4: a scale that is no power of two


def pairs_for(model: Any, *, seed: int = 0, rank: int = 4, where: str = "", size: float = 0.05) -> Pairs:
    """Random changes of every linear layer and convolution with ``where`` in its name."""
    generator = torch.Generator().manual_seed(seed)
    pairs: Pairs = {}
    for name, layer in model.named_modules():
        if where not in name or not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            continue
        outputs, inputs, *kernel = layer.weight.shape
        ones = [1] * len(kernel)
        down = torch.randn(rank, inputs, *kernel, generator=generator) * inputs**-0.5
        pairs[name] = down, torch.randn(outputs, rank, *ones, generator=generator) * size
    return pairs


def delta(pair: tuple[Tensor, Tensor]) -> Tensor:
    """What a pair adds to a weight, multiplied out by hand."""
    down, up = pair
    product = up.flatten(1).double() @ down.flatten(1).double()
    return product.float().reshape(len(up), *down.shape[1:])


def merge(model: Any, pairs: Pairs, scale: float = 1.0) -> Any:
    """``model`` with the pairs added to its weights, in place."""
    for name, pair in pairs.items():
        weight = model.get_submodule(name).weight
        weight.data += delta(pair).to(weight) * scale
    return model


def _named(pairs: Pairs, name: str, down: str, up: str, *, alpha: bool = False) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for layer, (first, second) in pairs.items():
        dotted = name.format(layer)
        flat = name.format(layer.replace(".", "_"))
        key = flat if "lora_unet_" in name or "lora_te" in name else dotted
        weights[f"{key}.{down}.weight"] = first.contiguous()
        weights[f"{key}.{up}.weight"] = second.contiguous()
        if alpha:
            weights[f"{key}.alpha"] = torch.tensor(ALPHA)
    return weights


WORDS, LETTERS = ("lora_down", "lora_up"), ("lora_A", "lora_B")
# By layout: the weights, and by what the file says to multiply them.
LAYOUTS: dict[str, tuple[Callable[[Pairs], dict[str, Tensor]], float]] = {
    "lightx2v": (lambda p: _named(p, "{}", *WORDS, alpha=True), ALPHA / 4),
    "kohya": (lambda p: _named(p, "lora_unet_{}", *WORDS, alpha=True), ALPHA / 4),
    "ComfyUI": (lambda p: _named(p, "diffusion_model.{}", *LETTERS), 1.0),
    "default": (lambda p: _named(p, "{}", "lora_A.default", "lora_B.default"), 1.0),
    "diffusers": (lambda p: _named(p, "transformer.{}", *LETTERS), 1.0),
    "peft": (lambda p: _named(p, "base_model.model.{}", *LETTERS), 1.0),
    "bare": (lambda p: _named(p, "{}", *LETTERS), 1.0),
    "words without alpha": (lambda p: _named(p, "{}", *WORDS), 1.0),
    "letters with alpha": (lambda p: _named(p, "diffusion_model.{}", *LETTERS, alpha=True), ALPHA / 4),
    "old diffusers": (lambda p: _named(p, "unet.{}", "lora.down", "lora.up"), 1.0),
}


def write(path: Path, weights: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: weight.clone() for key, weight in weights.items()}, path, metadata=metadata)
    return path


def written(path: Path, pairs: Pairs, layout: str = "diffusers") -> Path:
    return write(path, LAYOUTS[layout][0](pairs))


def forged(path: Path, header: Any, data: bytes = b"") -> Path:
    """A file with any header at all; text is taken as it is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path
