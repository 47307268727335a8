"""What was found in a picture, in the shapes of Hugging Face's tasks, or as COCO's detection JSON.

For a codec's thread.
"""

from typing import Any

import numpy as np
import orjson
import pybase64

from api.coco import coco
from api.codec import Term
from api.hugging_face_vision import LookingCall
from api.hugging_face_vision_fields import FeaturesBody
from api.vision_answers import base64_length, refuse_over
from api.vision_depth import depth_file
from api.vision_features import normalized, tokens_of
from api.vision_masks import as_png
from core.errors import ExecutionError
from core.result import InferenceResult
from core.vision import Box, DepthMap, Detect, Detections, Features, Segment, Segmentation


def told(call: LookingCall, result: InferenceResult, most: int, term: Term) -> bytes:
    """JSON. Raises ``RequestError`` when it would be over ``most`` bytes."""
    if call.coco:
        return orjson.dumps(coco(call.request, result.output, term))
    return orjson.dumps(_value(call, result, most, term), option=orjson.OPT_SERIALIZE_NUMPY)


def _value(call: LookingCall, result: InferenceResult, most: int, term: Term) -> Any:
    ask, body = call.request.ask, call.body
    match result.output:
        case Detections() as found if isinstance(ask, Detect):
            return [
                {"label": ask.labels[one.label], "score": one.score, "box": _corners(one.box)}
                for one in found.items
            ]
        case Segmentation() as found if isinstance(ask, Segment):
            return _masks(ask, found, most, term)
        case DepthMap() as found:
            width, height = found.size
            remedy = "a smaller picture, or for image/png alone"
            refuse_over(most, base64_length(len(found.values)), remedy)
            depth = pybase64.b64encode(depth_file(found, "png")).decode()
            refuse_over(most, base64_length(len(found.values)) + len(depth), remedy)
            return {
                "depth": depth,
                "predicted_depth": {
                    "shape": [height, width],
                    "dtype": "float32",
                    "data": pybase64.b64encode(found.values).decode(),
                },
                "kind": found.kind,
                "unit": found.unit,
            }
        case Features() as found if isinstance(body, FeaturesBody):
            return _features(body, found, most)
    raise ExecutionError("pipeline_error", f"{result.model} answered with something else than was asked")


def _masks(ask: Segment, found: Segmentation, most: int, term: Term) -> list[dict[str, Any]]:
    size = 0
    answer = []
    for prompt, instances in zip(ask.prompts, found.prompts, strict=True):
        for one in instances:
            term.check()
            mask = as_png(one.mask)
            answer.append({"label": prompt.text, "score": one.score, "mask": mask})
            size += len(mask)
            refuse_over(most, size, "a higher threshold")
    return answer


def _features(body: FeaturesBody, found: Features, most: int) -> Any:
    """[1, tokens, width], or [1, width]: as the pipeline of the same name gives them."""
    pooled = body.parameters.pool
    values = np.frombuffer(found.pooled, "<f4") if pooled else tokens_of(found)
    refuse_over(most, 14 * values.size, "pool: true")
    return [np.ascontiguousarray(normalized(values) if body.parameters.normalize else values)]


def _corners(box: Box) -> dict[str, float]:
    """Whole pixels, as the standard has them."""
    return dict(zip(("xmin", "ymin", "xmax", "ymax"), (round(edge) for edge in box), strict=True))
