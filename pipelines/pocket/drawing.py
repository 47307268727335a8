"""Fresh weights for a model of any architecture, the same on every machine."""

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch

_NONE: Mapping[str, float] = {}
# Tables that are looked up: each output is one row's.
_TABLES = ("embed_tokens.weight", "token_embedding.weight", "position_embedding.weight")


def redraw(model: torch.nn.Module, dtype: torch.dtype, gains: Mapping[str, float] = _NONE) -> None:
    """Fresh weights at unit gain, each tensor from a seed of its own name.

    gains: factors by the end of a tensor's name, the first that fits.

    The libraries' own initialisation (deviation .02, zeroed outputs) gives near-constant pictures, on
    which a comparison of two implementations could not fail.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.data = weight.data.to(dtype)
            gain = next((value for end, value in gains.items() if name.endswith(end)), 1.0)
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
    if name.endswith(_TABLES):
        return 1
    taps = math.prod(weight.shape[1:])
    if weight.ndim == 5 and "patch_embed" not in name:
        return taps // weight.shape[2]  # of a causal kernel only the last tap in time meets a still picture
    return taps
