"""From the detector's numbers to instances: which queries are kept, and masks in the caller's pixels.

One mask at a time is resized and run-length encoded, so that a picture's memory does not grow with what is
found on it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from core.request import Size
from core.vision import Box, Instance, Mask, Segment, Segmentation


@dataclass(frozen=True, slots=True)
class Candidates:
    """Queries over the threshold, the best score first, of all prompts of one picture.

    prompts: int64 [n], whose each is. scores: [n]. boxes: [n, 4], corners in parts of the picture.
    masks: [n, height, width], logits at the detector's own size.
    """

    prompts: Tensor
    scores: Tensor
    boxes: Tensor = field(repr=False)
    masks: Tensor = field(repr=False)

    def best(self, limit: int) -> "Candidates":
        order = self.scores.argsort(descending=True, stable=True)[:limit]
        return Candidates(self.prompts[order], self.scores[order], self.boxes[order], self.masks[order])


def joined(one: Candidates, other: Candidates, limit: int) -> Candidates:
    """The best of both; between equal scores ``one``'s come first."""
    both = Candidates(
        torch.cat([one.prompts, other.prompts]),
        torch.cat([one.scores, other.scores]),
        torch.cat([one.boxes, other.boxes]),
        torch.cat([one.masks, other.masks]),
    )
    return both.best(limit)


def over_threshold(
    prompt: int, scores: Tensor, boxes: Tensor, masks: Tensor, *, threshold: float, limit: int
) -> Candidates:
    """What one prompt found: the queries whose score is above ``threshold``, ``limit`` of them at most.

    Source: ``post_process_instance_segmentation`` of transformers' ``image_processing_sam3.py``.
    """
    order = scores.argsort(descending=True, stable=True)[:limit]
    order = order[scores[order] > threshold]
    prompts = torch.full_like(order, prompt)
    return Candidates(prompts, scores[order], boxes[order], masks[order].float())


def segmentation(found: Candidates, ask: Segment, size: Size) -> Segmentation:
    """``found`` in the pixels of a picture of ``size``, by prompt, the best score first."""
    width, height = size
    prompts = found.prompts.tolist()
    scores = found.scores.tolist()
    scale = found.boxes.new_tensor([width, height, width, height])
    boxes: list[Box] = [
        tuple(corners) for corners in torch.minimum((found.boxes * scale).clamp(min=0.0), scale).tolist()
    ]
    instances: list[list[tuple[int, Instance]]] = [[] for _ in ask.prompts]
    for index, mask in _masks(found, ask, size):
        one = Instance(box=boxes[index], score=scores[index], mask=Mask(size=size, runs=run_lengths(mask)))
        instances[prompts[index]].append((index, one))
    return Segmentation(
        size=size,
        prompts=tuple(
            tuple(one for _, one in sorted(found_here, key=lambda pair: pair[0])) for found_here in instances
        ),
    )


def _masks(found: Candidates, ask: Segment, size: Size) -> Iterator[tuple[int, Tensor]]:
    """(number, bool [height, width]) of each candidate; who comes first keeps what others claim too."""
    if ask.priors is None:
        for index in range(len(found.scores)):
            yield index, full_size(found.masks[index], size, ask.mask_threshold)
        return
    claims = found.scores * found.scores.new_tensor(ask.priors)[found.prompts]
    taken = torch.zeros(size[::-1], dtype=torch.bool, device=found.masks.device)
    for index in claims.argsort(descending=True, stable=True).tolist():
        mask = full_size(found.masks[index], size, ask.mask_threshold)
        mask &= ~taken
        taken |= mask
        yield index, mask


def full_size(logits: Tensor, size: Size, threshold: float) -> Tensor:
    """bool [height, width] of one mask. Source: as ``over_threshold``."""
    whole = interpolate(logits.sigmoid()[None, None], size[::-1], mode="bilinear", align_corners=False)
    return whole[0, 0] > threshold


def run_lengths(mask: Tensor) -> bytes:
    """``Mask.runs`` of a bool [height, width]. The changes are found on its device; only they are fetched."""
    line = mask.T.reshape(-1)
    differs = line[1:] != line[:-1]
    if differs.device.type == "cpu":
        changes = np.flatnonzero(differs.numpy())  # a tenth of the time that torch takes there
    else:
        changes = differs.nonzero()[:, 0].cpu().numpy()
    runs = np.diff(changes, prepend=-1, append=len(differs)).astype("<u4")
    return (b"\0\0\0\0" if bool(line[0]) else b"") + runs.tobytes()
