"""How SAM 3 reads a request: pixels at the model's size, texts as tokens, boxes as parts of the picture."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from core.limits import invalid
from core.request import Image, Size
from core.vision import SegmentPrompt
from pipelines.looking import array

# What upstream's processor reads where boxes come without words.
_BOXES_ALONE = "visual"


@dataclass(frozen=True, slots=True)
class Prompt:
    """words: token ids without padding. boxes: [n, 4], centre and size in parts of the picture.

    shows: int64 [n], 1 for an example of the thing and 0 for one of something else.
    """

    words: tuple[int, ...]
    boxes: Tensor = field(repr=False)
    shows: Tensor = field(repr=False)


def preprocess(image: Image, size: Size) -> Tensor:
    """float32 [3, height, width], -1 to 1; resized as bytes. Source: transformers' Sam3ImageProcessor."""
    pixels = torch.from_numpy(array(image).copy()).permute(2, 0, 1)[None]
    resized = interpolate(pixels, size[::-1], mode="bilinear", antialias=True, align_corners=False)[0]
    return (resized.float() - 127.5) / 127.5


def read_prompt(prompt: SegmentPrompt, size: Size, tokenizer: Any, limit: int) -> Prompt:
    """size: of the picture. Raises ``RequestError`` for a text of more than ``limit`` tokens."""
    words = tuple(tokenizer(prompt.text or _BOXES_ALONE, verbose=False).input_ids)
    if len(words) > limit:
        raise invalid(
            "prompts",
            f"a prompt of {len(words)} tokens is over the limit of {limit}, of which two mark its ends; "
            "name what to find in fewer words",
        )
    corners = torch.tensor([box for box, _ in prompt.boxes]).view(-1, 4) / torch.tensor([*size, *size])
    start, end = corners[:, :2], corners[:, 2:]
    boxes = torch.cat([(start + end) / 2, end - start], dim=-1)
    return Prompt(words, boxes, torch.tensor([shows for _, shows in prompt.boxes], dtype=torch.int64))
