"""Detections and instances of one picture as COCO's JSON, which annotation tools and evaluators read.

Source: cocodataset.org, "Data format"; results carry a ``score`` beside each annotation.
"""

from typing import Any

from api.codec import Term
from api.vision_masks import coco_rle
from core.errors import RequestError
from core.request import InferenceRequest
from core.vision import Box, Detect, Detections, Mask, Segment, Segmentation


def coco(request: InferenceRequest, found: object, term: Term) -> dict[str, Any]:
    """One image, numbered 1; a category for each label or prompt, numbered from 1."""
    if isinstance(found, Detections):
        assert isinstance(request.ask, Detect)
        names = list(request.ask.labels)
        annotations = [_annotation(one.box, one.score, one.label) for one in found.items]
    elif isinstance(found, Segmentation):
        assert isinstance(request.ask, Segment)
        names = [prompt.text for prompt in request.ask.prompts]
        annotations = [
            _annotation(one.box, one.score, label) | _mask(one.mask, term)
            for label, instances in enumerate(found.prompts)
            for one in instances
        ]
    else:
        raise RequestError("invalid_parameter", "only objects can be told as coco", param="format")
    (picture,) = request.images
    return {
        "images": [{"id": 1, "width": picture.width, "height": picture.height}],
        "annotations": [{"id": at + 1, "image_id": 1} | each for at, each in enumerate(annotations)],
        "categories": [{"id": at + 1, "name": name} for at, name in enumerate(names)],
    }


def _annotation(box: Box, score: float, label: int) -> dict[str, Any]:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    return {
        "category_id": label + 1,
        "bbox": [left, top, width, height],
        "area": width * height,
        "iscrowd": 0,
        "score": score,
    }


def _mask(mask: Mask, term: Term) -> dict[str, Any]:
    import numpy as np

    term.check()
    return {"segmentation": coco_rle(mask), "area": int(np.frombuffer(mask.runs, "<u4")[1::2].sum())}
