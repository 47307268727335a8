"""The edits, each as an exact image operation: what the trained model is measured against.

Pictures are float32 [n, 3, height, width] in 0 ... 1. Distances are in pixels, whatever the picture's size,
so that an operation looks the same to every token.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Operation = Callable[[Tensor, float], Tensor]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
BORDER = 16
BLOCK = 16
BLUR = 5.0

COLOURS = {
    "red": (0.85, 0.1, 0.1),
    "blue": (0.1, 0.2, 0.85),
    "green": (0.1, 0.65, 0.2),
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
}


def luma(x: Tensor) -> Tensor:
    """[n, 1, height, width]."""
    return (x * torch.tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def grey(x: Tensor, strength: float) -> Tensor:
    return luma(x).expand_as(x)


def sketch(x: Tensor, strength: float) -> Tensor:
    """Dark lines on white, where brightness changes."""
    light = _gaussian(luma(x), 1.2)
    padded = F.pad(light, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return (1 - 4 * torch.sqrt(across**2 + down**2 + 1e-8)).clamp(0, 1).expand_as(x)


def warmer(x: Tensor, strength: float) -> Tensor:
    return _shift(x, (0.2, 0.02, -0.25), strength)


def cooler(x: Tensor, strength: float) -> Tensor:
    return _shift(x, (-0.25, 0.02, 0.2), strength)


def invert(x: Tensor, strength: float) -> Tensor:
    return 1 - x


def flip(x: Tensor, strength: float) -> Tensor:
    return x.flip(-1)


def blur(x: Tensor, strength: float) -> Tensor:
    return _gaussian(x, BLUR * strength)


def brighter(x: Tensor, strength: float) -> Tensor:
    return (x + 0.28 * strength).clamp(0, 1)


def darker(x: Tensor, strength: float) -> Tensor:
    return x * (1 - 0.6 * min(strength, 1.5))


def contrast(x: Tensor, strength: float) -> Tensor:
    return ((x - 0.5) * (1 + strength) + 0.5).clamp(0, 1)


def pixelate(x: Tensor, strength: float) -> Tensor:
    return F.interpolate(F.avg_pool2d(x, BLOCK), scale_factor=BLOCK, mode="nearest")


def sepia(x: Tensor, strength: float) -> Tensor:
    return (luma(x) * torch.tensor([1.12, 0.92, 0.62]).view(1, 3, 1, 1)).clamp(0, 1)


def night(x: Tensor, strength: float) -> Tensor:
    dim = torch.lerp(luma(x).expand_as(x), x, 0.35) * torch.tensor([0.28, 0.36, 0.62]).view(1, 3, 1, 1)
    return dim.clamp(0, 1)


def unchanged(x: Tensor, strength: float) -> Tensor:
    return x


def border(colour: str) -> Operation:
    def paint(x: Tensor, strength: float) -> Tensor:
        framed = torch.tensor(COLOURS[colour]).view(1, 3, 1, 1).expand_as(x).clone()
        inner = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
        framed[inner] = x[inner]
        return framed

    return paint


def blend(first: Tensor, second: Tensor) -> Tensor:
    return (first + second) / 2


def _shift(x: Tensor, by: tuple[float, float, float], strength: float) -> Tensor:
    return (x + strength * torch.tensor(by).view(1, 3, 1, 1)).clamp(0, 1)


def _gaussian(x: Tensor, deviation: float) -> Tensor:
    reach = min(round(3 * deviation), min(x.shape[-2:]) - 1)
    at = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (at / deviation) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    x = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    x = F.conv2d(x, kernel.unsqueeze(2), groups=x.shape[1])
    return F.conv2d(x, kernel.unsqueeze(3), groups=x.shape[1])


OPERATIONS: dict[str, Operation] = {
    "black and white": grey,
    "sketch": sketch,
    "warmer": warmer,
    "cooler": cooler,
    "invert": invert,
    "flip": flip,
    **{f"{colour} border": border(colour) for colour in COLOURS},
    "blur": blur,
    "brighter": brighter,
    "darker": darker,
    "contrast": contrast,
    "pixelate": pixelate,
    "sepia": sepia,
    "night": night,
    "unchanged": unchanged,
}
