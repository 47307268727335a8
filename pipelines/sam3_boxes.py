"""SAM 3's detector with box prompts read by torch alone, where upstream needs torchvision's ``roi_align``.

A torchvision that was built for another torch makes most of transformers' vision classes un-importable, so
none is asked for.
"""

import torch
from torch import Tensor
from transformers.models.sam3.configuration_sam3 import Sam3Config
from transformers.models.sam3.modeling_sam3 import Sam3GeometryEncoder, Sam3Model, box_cxcywh_to_xyxy


class Detector(Sam3Model):  # type: ignore[misc]  # transformers ships no types
    """``Sam3Model`` with the same weights under the same names."""

    def __init__(self, config: Sam3Config) -> None:
        super().__init__(config)
        self.geometry_encoder = _GeometryEncoder(self.config.geometry_encoder_config)


class _GeometryEncoder(Sam3GeometryEncoder):  # type: ignore[misc]
    def _encode_boxes(
        self, boxes: Tensor, boxes_mask: Tensor, boxes_labels: Tensor, vision_features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Source: the method of the same name in transformers' ``modeling_sam3.py``."""
        height, width = vision_features.shape[-2:]
        corners = box_cxcywh_to_xyxy(boxes) * boxes.new_tensor([width, height, width, height])
        pooled = roi_align(vision_features, corners, self.roi_size)
        pooled = self.boxes_pool_project(pooled.flatten(0, 1)).view(*boxes.shape[:2], self.hidden_size)
        center_x, center_y, box_width, box_height = boxes.flatten(0, 1).unbind(-1)
        places = self._encode_box_coordinates(center_x, center_y, box_width, box_height)
        placed = self.boxes_pos_enc_project(places.view(*boxes.shape[:2], -1))
        embedded = self.boxes_direct_project(boxes) + pooled + placed
        return self.label_embed(boxes_labels.long()) + embedded, boxes_mask


def roi_align(features: Tensor, boxes: Tensor, side: int) -> Tensor:
    """float32 [batch, n, channels, side, side]: the mean of bilinear samples in each cell of each box.

    features: [batch, channels, height, width]. boxes: [batch, n, 4], corners in their pixels.

    Equal to torchvision's ``roi_align`` as upstream calls it, with ``sampling_ratio=-1`` and
    ``aligned=False``. A bilinear sample is a product of a weight in x and one in y, and so is their mean over
    a cell's grid: two small matrices for each box take the place of its samples.
    """
    with torch.autocast(features.device.type, enabled=False):
        left, top, right, bottom = boxes.float().unbind(-1)
        down = _weights(top, bottom, side, features.shape[-2])
        across = _weights(left, right, side, features.shape[-1])
        rows = torch.einsum("bnph,bchw->bncpw", down, features.float())
        return torch.einsum("bncpw,bnqw->bncpq", rows, across)


def _weights(start: Tensor, end: Tensor, cells: int, length: int) -> Tensor:
    """[..., cells, length]: what each of ``length`` pixels counts for in each cell along one axis.

    Source: ``roi_align_common.h`` of torchvision: a cell has ``ceil(its size)`` evenly spaced samples; those
    more than a pixel outside count as zeros, and others outside are moved onto the edge.
    """
    size = (end - start).clamp(min=1.0) / cells
    samples = size.ceil()
    most = int(samples.max())
    number = torch.arange(most, device=start.device)
    cell = torch.arange(cells, device=start.device)
    # [..., cells, samples]
    inside = (number + 0.5) * (size / samples)[..., None, None]
    at = start[..., None, None] + cell[:, None] * size[..., None, None] + inside
    counts = (number < samples[..., None, None]) & (at >= -1.0) & (at <= length)
    at = at.clamp(0.0, length - 1.0)
    pixels = torch.arange(length, device=start.device)
    weights = (1.0 - (at[..., None] - pixels).abs()).clamp(min=0.0) * counts[..., None]
    return weights.sum(-2) / samples[..., None, None]
