"""What vision models found, as the JSON that the service's clients read, or drawn on the picture.

For a codec's thread: masks are turned into their form one after another, so one of them is in memory.
"""

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import orjson

from api.codec import Term
from api.vision_depth import depth_fields
from api.vision_drawing import drawing
from api.vision_features import features_answer
from api.vision_features import nbytes as features_bytes
from api.vision_fields import DepthAnythingBody, Dinov3Body, GroundingDinoBody, MaskFormat
from api.vision_masks import FORMS, dense_bytes, polygons
from api.vision_service import VisionCall
from core.errors import RequestError
from core.result import InferenceResult
from core.vision import DepthMap, Detect, Detections, Features, Instance, Segment, Segmentation, SegmentPrompt

F = TypeVar("F", Features, DepthMap, Detections, Segmentation)

_LESS_DEPTH: Final = 'output_format "png", or fewer images'


def answer(call: VisionCall, results: Sequence[InferenceResult], most: int, term: Term) -> bytes:
    """A JSON object. Raises ``RequestError`` when it would be over ``most`` bytes, before it is that long."""
    body = call.body
    if isinstance(body, Dinov3Body):
        features = _all(Features, results)
        refuse_over(most, features_bytes(body, features), 'encoding "base64" or pooled_only')
        told: dict[str, Any] = {"features": features_answer(body, features)}
    elif isinstance(body, DepthAnythingBody):
        told = _depths(_all(DepthMap, results), body, most, term)
    elif isinstance(body, GroundingDinoBody):
        found = _all(Detections, results)
        told = {"results": [_detections(call, at, one) for at, one in enumerate(found)]}
    else:
        told = {"results": _segmentations(call, _all(Segmentation, results), most, term)}
    return orjson.dumps(told | {"model_id": call.model}, option=orjson.OPT_SERIALIZE_NUMPY)


def drawn(call: VisionCall, results: Sequence[InferenceResult], term: Term) -> bytes:
    """PNG of the first picture with what was found in it."""
    (result,) = results
    return drawing(call.requests[0], result, term)


def _all(kind: type[F], results: Sequence[InferenceResult]) -> list[F]:
    """What was found, none left out. Raises ``TypeError`` where one is of another kind."""
    found = [result.output for result in results]
    for one in found:
        if not isinstance(one, kind):
            raise TypeError(f"found {type(one).__name__} where {kind.__name__} was asked for")
    return found  # type: ignore[return-value]  # each was looked at


def _detections(call: VisionCall, at: int, found: Detections) -> dict[str, Any]:
    """``labels`` in the caller's own spelling; ``text_labels`` are the words that were recognised."""
    ask = call.requests[at].ask
    assert isinstance(ask, Detect)
    return {
        "scores": [one.score for one in found.items],
        "labels": [ask.labels[one.label] for one in found.items],
        "boxes": [list(one.box) for one in found.items],
        "text_labels": [one.phrase for one in found.items],
        "class_ids": [one.label for one in found.items],
    }


def _segmentations(call: VisionCall, found: Sequence[Segmentation], most: int, term: Term) -> list[Any]:
    form = call.mask_format
    masks = [one.mask for each in found for prompt in each.prompts for one in prompt]
    if form == "dense":
        refuse_over(most, sum(map(dense_bytes, masks)), 'output_format "rle"')
    written = Written(form, most, term)
    return [
        [
            {
                "prompt_index": index,
                "prompt": prompt.text,
                "result": written.instances(each.prompts[index]),
            }
            for index, prompt in enumerate(_prompts(call, at))
        ]
        for at, each in enumerate(found)
    ]


def _prompts(call: VisionCall, at: int) -> tuple[SegmentPrompt, ...]:
    ask = call.requests[at].ask
    assert isinstance(ask, Segment)
    return ask.prompts


class Written:
    """Instances in one form of masks, and how long they have become together."""

    def __init__(self, form: MaskFormat, most: int, term: Term) -> None:
        self._form = form
        self._most = most
        self._term = term
        self._size = 0

    def instances(self, found: Sequence[Instance]) -> dict[str, Any]:
        scores = [one.score for one in found]
        # Both names: transformers changed its own from one to the other.
        told: dict[str, Any] = {
            "scores": scores,
            "iou_scores": scores,
            "boxes": [list(one.box) for one in found],
        }
        if self._form in ("polygons", "polygon"):
            outlines = []
            for one in found:
                outlines.append(polygons(one.mask))
                self._grow(sum(14 * len(line) for lines in outlines[-1] for line in lines))
            return told | {
                "masks_polygon": [outer for outer, _ in outlines],
                "masks_polygon_holes": [holes for _, holes in outlines],
            }
        name, write = FORMS[self._form]
        masks = []
        for one in found:
            masks.append(write(one.mask))
            self._grow(_length(masks[-1]))
        return told | {name: masks}

    def _grow(self, nbytes: int) -> None:
        self._term.check()
        self._size += nbytes
        refuse_over(self._most, self._size, "a higher threshold, or fewer images")


def _depths(found: Sequence[DepthMap], body: DepthAnythingBody, most: int, term: Term) -> dict[str, Any]:
    """Of the first picture, as the first clients read it; of all of them beside it where there are more."""
    told: list[dict[str, Any]] = []
    size = 0
    for one in found:
        term.check()
        if body.output_format == "npy":
            refuse_over(most, size + base64_length(len(one.values)), _LESS_DEPTH)
        told.append(depth_fields(one, body))
        size += len(told[-1]["depth_data"]) + len(told[-1].get("export", {}).get("data", ""))
        refuse_over(most, size, _LESS_DEPTH)
    return told[0] if len(told) == 1 else told[0] | {"results": told}


def _length(mask: Any) -> int:
    if isinstance(mask, orjson.Fragment):
        return 0  # counted before it was made
    return len(mask if isinstance(mask, str) else mask["counts"])


def base64_length(nbytes: int) -> int:
    return -(-nbytes // 3) * 4


def refuse_over(most: int, size: int, remedy: str) -> None:
    if size > most:
        raise RequestError(
            "invalid_parameter",
            f"the answer of at least {size} bytes is over the limit of {most}; ask for {remedy} "
            "(the operator can raise MAX_ANSWER_MB; of a RunPod job MAX_OUTPUT_MB)",
        )
