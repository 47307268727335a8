"""Hugging Face's tasks that look at a picture: boxes, masks, depth and features, as their clients read them.

Detection and segmentation here find what they are told to look for: ``candidate_labels``, which only
zero-shot-object-detection has in the standard, are taken by all three, also in the address.
Source: the task specifications of huggingface.js, ``packages/tasks/src/tasks``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import orjson

from api.asking import time_left
from api.body import parse_json
from api.dialect import Answer, Arrival, Services
from api.errors import message_of, status_of
from api.hugging_face_vision_fields import (
    DepthBody,
    FeaturesBody,
    LabelParameters,
    ObjectDetectionBody,
    SegmentationBody,
    ZeroShotBody,
)
from api.intake import ImageSource
from api.json_fields import checked, in_words
from api.vision_kinds import find
from core.errors import RequestError, ServingError
from core.request import InferenceRequest, Task
from core.result import InferenceResult
from core.vision import Ask, Depth, Detect, Embed, Segment, SegmentPrompt

Body = ObjectDetectionBody | ZeroShotBody | SegmentationBody | DepthBody | FeaturesBody
B = TypeVar("B", bound=Body)
_WORDS: Final = {
    "labels": "candidate_labels",
    "prompts": "candidate_labels",
    "box_threshold": "threshold",
    "images": "inputs",
}


@dataclass(frozen=True, slots=True)
class LookingCall:
    """coco: the answer is COCO's detection JSON. picture: a PNG alone is wanted.

    until: by the monotonic clock, when it is to be answered.
    """

    request: InferenceRequest
    body: Body
    coco: bool
    picture: bool
    until: float | None

    @property
    def requests(self) -> tuple[InferenceRequest, ...]:
        return (self.request,)


class Looking:
    """See ``api.dialect.Dialect``. A body that is no JSON is the picture itself, and says no more."""

    def __init__(self, task: Task, body: type[Any], services: Services) -> None:
        self._task = task
        self._body = body
        self._services = services

    def read(self, body: bytes, arrival: Arrival) -> object:
        return read_picture_or_json(body, arrival)

    async def parse(self, content: object, arrival: Arrival) -> LookingCall:
        if isinstance(content, bytes):
            body: Body = checked(self._body, {"inputs": ""}, "the body")
            source = ImageSource(content, "inputs")
        else:
            body = checked(self._body, content, "the body")
            source = ImageSource(body.inputs, "inputs")
        wishes = body.parameters
        spec = find(self._services.catalog, wishes.model or arrival.query.get("model"), self._task)
        ask = _ask(body, arrival)
        timeout = self._services.options.timeout
        (image,) = await self._services.intake.load_within(
            [source], time_left(timeout, arrival.started), self._services.options.max_request_pixels
        )
        left = time_left(timeout, arrival.started)
        try:
            request = spec.look(id=arrival.id, image=image, ask=ask, timeout=left)
        except RequestError as error:
            raise in_words(error, _WORDS) from None
        form = arrival.query.get("format", "")
        if form not in ("", "coco") or (form and self._task not in (Task.DETECT, Task.SEGMENT)):
            raise RequestError(
                "invalid_parameter", "format must be coco, of a task that finds objects", param="format"
            )
        accepted = arrival.headers.get("accept", "").partition(";")[0].strip().lower()
        until = None if timeout is None else arrival.started + timeout
        return LookingCall(request, body, coco=form == "coco", picture=accepted == "image/png", until=until)

    async def render(self, call: LookingCall, results: Sequence[InferenceResult]) -> Answer:
        from api.hugging_face_vision_answers import told  # numpy's import would delay a first answer
        from api.vision_drawing import drawing

        codec = self._services.intake.codec
        (result,) = results
        if call.picture:
            picture = await codec.write(partial(drawing, call.request, result), call.until)
            return Answer(picture, media_type="image/png")
        most = self._services.options.max_answer_bytes
        return Answer(await codec.write(partial(told, call, result, most), call.until))

    def refuse(self, error: ServingError, arrival: Arrival) -> Answer:
        body = {"error": message_of(error), "code": error.code}
        return Answer(
            orjson.dumps(body if error.param is None else body | {"param": error.param}), status_of(error)
        )


def read_picture_or_json(body: bytes, arrival: Arrival) -> object:
    declared = arrival.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared == "application/json" or body[:64].lstrip()[:1] in (b"{", b"["):
        return parse_json(body)
    return body


def _ask(body: Body, arrival: Arrival) -> Ask:
    match body:
        case ZeroShotBody() | ObjectDetectionBody():
            wishes = body.parameters
            return Detect(labels=_labels(wishes, arrival), box_threshold=wishes.threshold)
        case SegmentationBody():
            labels = _labels(body.parameters, arrival)
            return Segment(
                prompts=tuple(SegmentPrompt(text=label) for label in labels),
                threshold=body.parameters.threshold,
                mask_threshold=body.parameters.mask_threshold,
                # Of a panoptic picture each pixel is part of one thing.
                priors=(1.0,) * len(labels) if body.parameters.subtask == "panoptic" else None,
            )
        case DepthBody():
            return Depth()
        case FeaturesBody():
            return Embed()


def _labels(wishes: LabelParameters, arrival: Arrival) -> tuple[str, ...]:
    """Raises ``RequestError`` where none are named."""
    labels = wishes.candidate_labels or tuple(
        label.strip() for label in arrival.query.get("candidate_labels", "").split(",") if label.strip()
    )
    if labels:
        return labels
    raise RequestError(
        "invalid_parameter",
        "the models here find what they are told to look for; name it in parameters.candidate_labels, or "
        "as ?candidate_labels=cat,dog in the address",
        param="candidate_labels",
    )


_OBJECTS: Final = {"type": "array", "items": {"type": "object"}}
_COCO: Final = {"type": "object", "required": ["images", "annotations", "categories"]}


def _answers(schema: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {
        200: {
            "description": "What was found; drawn, where Accept asks for image/png",
            "content": {
                "application/json": {"schema": dict(schema)},
                "image/png": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "default": {"description": 'Refused: {"error": a sentence, "code": a stable word}'},
    }


# Summary, body, dialect, documented answers.
LOOKING: Final[
    Mapping[str, tuple[str, Any, Callable[[Services], Looking], dict[int | str, dict[str, Any]]]]
] = {
    name: (summary, body, partial(Looking, task, body), _answers(schema))
    for name, summary, task, body, schema in (
        (
            "object-detection",
            "Boxes around what is named",
            Task.DETECT,
            ObjectDetectionBody,
            {"anyOf": [_OBJECTS, _COCO]},
        ),
        (
            "zero-shot-object-detection",
            "Boxes around what is named",
            Task.DETECT,
            ZeroShotBody,
            {"anyOf": [_OBJECTS, _COCO]},
        ),
        (
            "image-segmentation",
            "Masks of what is named",
            Task.SEGMENT,
            SegmentationBody,
            {"anyOf": [_OBJECTS, _COCO]},
        ),
        ("depth-estimation", "How far everything is", Task.DEPTH, DepthBody, {"type": "object"}),
        ("image-feature-extraction", "Features of a picture", Task.EMBED, FeaturesBody, {"type": "array"}),
    )
}
