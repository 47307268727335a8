"""Writes ``pocket-depth`` to disk: Depth Anything 3's monocular network at the size of a test, untrained.

In upstream's own layout, so that a load of it takes the path of the released checkpoints. Its depths and
its sky follow the picture and mean nothing.
"""

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from pipelines.pocket.folder import write_once

_WIDTH, _BLOCKS, _GRID, _PATCH = 64, 4, 16, 14
_HEADS = 2  # there is one for each 64 channels in the released ones
_STAGES, _FUSED, _HIDDEN = (16, 24, 32, 32), 16, 32
# Deviations of a draw, where that of one over the root of its inputs would leave little to see of a picture.
_TOKENS = {"backbone.pretrained.cls_token": 0.5, "backbone.pretrained.pos_embed": 0.2}
_GAINS = {"head.scratch.output_conv2.2.weight": 0.5, "head.scratch.sky_output_conv2.2.weight": 4.0}


def build(parent: Path) -> Path:
    """The checkpoint's folder under ``parent``; see ``write_once``."""
    return write_once(parent, "pocket-depth", _write)


def _write(folder: Path) -> None:
    # Files of the released checkpoints name the classes too, which nothing here asks for.
    net = {"name": "pocket", "out_layers": list(range(_BLOCKS)), "num_heads": _HEADS}
    config = {"model_name": "pocket-depth", "config": {"net": net}}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {f"model.{name}": _draw(name, shape) for name, shape in _shapes()}
    save_file(weights, folder / "model.safetensors")


def _draw(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The same on every machine: each tensor is from a seed of its own name.

    No two are alike, biases and norms neither: one in another's place could not be seen.
    """
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        return (drawn * 0.1 + (0 if name.endswith("bias") else 1)).astype(np.float32)
    if name in _TOKENS:
        return drawn * np.float32(_TOKENS[name])
    inputs = math.prod(shape[1:])
    if name in ("head.resize_layers.0.weight", "head.resize_layers.1.weight"):
        inputs = shape[0]  # of a transposed kernel that does not overlap itself
    return drawn * np.float32(_GAINS.get(name, 1.0) / math.sqrt(inputs))


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Of every tensor, by its name in depth_anything_3's DinoVisionTransformer and DPT."""
    trunk = "backbone.pretrained"
    yield f"{trunk}.cls_token", (1, 1, _WIDTH)
    yield f"{trunk}.pos_embed", (1, _GRID**2 + 1, _WIDTH)
    yield from _layer(f"{trunk}.patch_embed.proj", _WIDTH, 3, _PATCH, _PATCH)
    for block in (f"{trunk}.blocks.{i}" for i in range(_BLOCKS)):
        for norm in ("norm1", "norm2"):
            yield from _layer(f"{block}.{norm}", _WIDTH)
        yield from _layer(f"{block}.attn.qkv", 3 * _WIDTH, _WIDTH)
        yield from _layer(f"{block}.attn.proj", _WIDTH, _WIDTH)
        yield from _layer(f"{block}.mlp.fc1", 4 * _WIDTH, _WIDTH)
        yield from _layer(f"{block}.mlp.fc2", _WIDTH, 4 * _WIDTH)
        yield f"{block}.ls1.gamma", (_WIDTH,)
        yield f"{block}.ls2.gamma", (_WIDTH,)
    yield from _layer(f"{trunk}.norm", _WIDTH)
    for i, channels in enumerate(_STAGES):
        yield from _layer(f"head.projects.{i}", channels, _WIDTH, 1, 1)
        yield f"head.scratch.layer{i + 1}_rn.weight", (_FUSED, channels, 3, 3)
    for i, taps in ((0, 4), (1, 2), (3, 3)):
        yield from _layer(f"head.resize_layers.{i}", _STAGES[i], _STAGES[i], taps, taps)
    for level in (1, 2, 3, 4):
        fusion = f"head.scratch.refinenet{level}"
        for unit in (2,) if level == 4 else (1, 2):
            for conv in (1, 2):
                yield from _layer(f"{fusion}.resConfUnit{unit}.conv{conv}", _FUSED, _FUSED, 3, 3)
        yield from _layer(f"{fusion}.out_conv", _FUSED, _FUSED, 1, 1)
    yield from _layer("head.scratch.output_conv1", _FUSED // 2, _FUSED, 3, 3)
    for head in ("output_conv2", "sky_output_conv2"):
        yield from _layer(f"head.scratch.{head}.0", _HIDDEN, _FUSED // 2, 3, 3)
        yield from _layer(f"head.scratch.{head}.2", 1, _HIDDEN, 1, 1)


def _layer(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]
