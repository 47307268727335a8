"""How pictures enter the Depth Anything models: resized as each release's own code does, and normalised.

Both are pure functions of picture and size.
"""

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pictures
from torch import Tensor
from torch.nn.functional import interpolate

from core.request import Image, Size
from pipelines.looking import array, normalised


def preprocess_v2(image: Image, size: Size) -> Tensor:
    """float32 [3, height, width]. Source: DPTImageProcessorPil of transformers."""
    picture = Pictures.fromarray(array(image)).resize(size, Pictures.Resampling.BICUBIC)
    return _floats(np.asarray(picture))


def preprocess_v3(image: Image, size: Size) -> Tensor:
    """float32 [3, height, width]. Source: InputProcessor of depth_anything_3's utils/io/input_processor.py.

    In two steps, each rounded to bytes: to the length of the longer side, then to multiples of a patch.
    Its resizing is OpenCV's; this differs from it by no more than one of 255 levels.
    """
    scale = max(size) / max(image.size)
    whole = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return _floats(_resize(_resize(array(image), whole), size))


def _floats(pixels: NDArray[np.uint8]) -> Tensor:
    return normalised(torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255)


def _resize(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Bytes [height, width, 3], by OpenCV's INTER_CUBIC where a side grows and INTER_AREA where none does."""
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    if size[0] > width or size[1] > height:
        values = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
        # Both have -0.75 as the kernel's free parameter, and neither widens it where a side shrinks.
        grown = interpolate(values, (size[1], size[0]), mode="bicubic", align_corners=False)
        resized = grown[0].permute(1, 2, 0).numpy()
    else:
        lower = _averaged(pixels, size[1])
        resized = _averaged(lower.transpose(1, 0, 2), size[0]).transpose(1, 0, 2)
        if (width, height) == (2 * size[0], 2 * size[1]):
            resized = np.floor(resized + 0.5)  # which OpenCV has a loop of its own for, that rounds halves up
    return np.ascontiguousarray(resized.round().clip(0, 255).astype(np.uint8))


def _averaged(values: NDArray[np.uint8] | NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """``values`` along their first axis in ``length`` parts, each the mean of what it covers.

    Pieces of values at a part's two ends count by how much of them is inside. One part at a time: a copy of
    a large picture as floats would be the most memory that an answer takes.
    """
    given = values.shape[0]
    mean = np.empty((length, *values.shape[1:]), np.float32)
    edges = np.arange(length + 1) * (given / length)
    edges[-1] = given
    for part, (start, end) in enumerate(pairwise(edges)):
        first, last = int(start), min(given, int(np.ceil(end - 1e-9)))
        weights = np.minimum(np.arange(first, last) + 1, end) - np.maximum(np.arange(first, last), start)
        mean[part] = np.tensordot(
            (weights / weights.sum()).astype(np.float32), values[first:last].astype(np.float32), axes=1
        )
    return mean
