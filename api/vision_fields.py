"""What the vision routes may be asked, field by field, and what each body asks of each of its pictures.

It knows no model: the limits of one are its row's.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, Field, PlainValidator, StrictBool, WithJsonSchema

from api.body import LongText
from api.fields import FieldFault, Wire
from api.json_fields import Number, Text
from core.vision import Ask, Box, Depth, Detect, Embed, Segment, SegmentPrompt

MaskFormat = Literal["rle", "polygons", "polygon", "dense", "coco_rle", "png"]
DepthFormat = Literal["png", "png16", "npy", "colour"]
ExportFormat = Literal["glb", "npz", "ply", "gs_ply", "gs_video"]
FeatureEncoding = Literal["list", "base64"]
FloatFormat = Literal["float32", "float16"]
T = TypeVar("T")

_MOST: Final = 1000  # of anything in a list, before the limits of server and model are asked


@dataclass(frozen=True, slots=True)
class Picture:
    """base64, data URI or URL, as it came."""

    content: str | LongText


def _picture(value: object) -> Picture:
    if isinstance(value, str | LongText):
        return Picture(value)
    if not isinstance(value, dict) or not isinstance(value.get("data"), str | LongText):
        raise ValueError('should be base64, a data URI, a URL, or {"data": …, "format": "base64" or "url"}')
    if value.keys() - {"data", "format"}:
        raise ValueError("has a field besides data and format")
    form = value.get("format", "base64")
    if form not in ("base64", "url"):
        raise ValueError("format should be base64 or url")
    if form == "url" and not (isinstance(value["data"], str) and "://" in value["data"][:64]):
        raise ValueError("format is url and data is none")
    return Picture(value["data"])


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise ValueError("should be a list of texts")
    if len(value) > _MOST:
        raise ValueError(f"holds {len(value)} texts, over the limit of {_MOST}; send fewer")
    return tuple(value)


def _prompts(value: object) -> tuple[str, ...] | tuple[tuple[str, ...], ...]:
    """Shared by all pictures, or a list for each."""
    if isinstance(value, list) and value and all(isinstance(one, list) for one in value):
        return tuple(_texts(one) for one in value)
    return _texts(value)


def _overlaps(value: object) -> bool | tuple[float, ...]:
    if isinstance(value, bool):
        return value
    if isinstance(value, list) and all(isinstance(w, int | float) and not isinstance(w, bool) for w in value):
        return tuple(float(weight) for weight in value)
    raise ValueError("should be true, false, or a list of one weight for each prompt")


def _boxes(value: object) -> tuple[tuple[tuple[tuple[Box, bool], ...], ...], ...]:
    """By picture, by prompt: boxes of four corners, and perhaps 1 or 0 for what is meant and what is not."""
    if not isinstance(value, list) or not all(isinstance(picture, list) for picture in value):
        raise ValueError("should be a list for each picture of a list of boxes for each prompt")
    if not all(isinstance(prompt, list) for picture in value for prompt in picture):
        raise ValueError("should hold a list of boxes for each prompt of each picture")
    return tuple(tuple(tuple(_box(box) for box in prompt) for prompt in picture) for picture in value)


def _box(value: object) -> tuple[Box, bool]:
    if not isinstance(value, list) or len(value) not in (4, 5):
        raise ValueError("each box should be [left, top, right, bottom], and perhaps 1 or 0")
    if any(isinstance(edge, bool) or not isinstance(edge, int | float) for edge in value[:4]):
        raise ValueError("the corners of a box should be numbers of pixels")
    if len(value) == 5 and value[4] not in (0, 1):
        raise ValueError("the fifth number of a box should be 1 for what is meant or 0 for what is not")
    left, top, right, bottom = (float(edge) for edge in value[:4])
    return (left, top, right, bottom), len(value) == 4 or bool(value[4])


def _few(value: list[T]) -> list[T]:
    if not value:
        raise ValueError("is empty; send at least one picture")
    return value


_TEXTS: Final = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_NUMBER: Final = {"type": "number"}
_BOX: Final = {"type": "array", "items": _NUMBER, "minItems": 4, "maxItems": 5}
_PICTURE: Final = {
    "anyOf": [
        {"type": "string", "description": "base64, data URI or public http(s) URL"},
        {
            "type": "object",
            "required": ["data"],
            "properties": {"data": {"type": "string"}, "format": {"enum": ["base64", "url"]}},
            "additionalProperties": False,
        },
    ]
}

OnePicture = Annotated[Picture, PlainValidator(_picture), WithJsonSchema(_PICTURE)]
Pictures = Annotated[list[OnePicture], AfterValidator(_few)]
Labels = Annotated[tuple[str, ...], PlainValidator(_texts), WithJsonSchema(_TEXTS)]
Prompts = Annotated[
    tuple[str, ...] | tuple[tuple[str, ...], ...],
    PlainValidator(_prompts),
    WithJsonSchema({"anyOf": [_TEXTS, {"type": "array", "items": _TEXTS, "minItems": 1}]}),
]
Overlaps = Annotated[
    bool | tuple[float, ...],
    PlainValidator(_overlaps),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "array", "items": _NUMBER}]}),
]
Boxes = Annotated[
    tuple[tuple[tuple[tuple[Box, bool], ...], ...], ...],
    PlainValidator(_boxes),
    WithJsonSchema(
        {"type": "array", "items": {"type": "array", "items": {"type": "array", "items": _BOX}}},
    ),
]
Part = Annotated[Number, Field(ge=0, le=1)]


class VisionBody(Wire):
    """Of all of them. ``asks``: what is asked of each picture, in their order."""

    images: Pictures = Field(min_length=1, description="each is looked at on its own")
    model_id: Text | None = Field(None, max_length=200, description="name, alias or hub id; else the usual")

    @abstractmethod
    def asks(self) -> list[Ask]: ...


class Sam3Body(VisionBody):
    prompts: Prompts = Field((), description="what to find: texts for all pictures, or a list for each")
    threshold: Part = Field(0.5, description="least score of an instance")
    mask_threshold: Part = Field(0.5, description="least probability of a pixel")
    resolve_overlaps: Overlaps = Field(
        False, description="true: a pixel has one instance, the best; numbers: weights of the prompts in that"
    )
    output_format: MaskFormat | None = Field(None, description="rle where none is named; of jobs dense")
    boxes: Boxes | None = Field(
        None,
        description="for each picture and prompt, examples as [left, top, right, bottom] in pixels; a fifth "
        "number of 0 marks what is not meant",
    )

    def asks(self) -> list[Ask]:
        """Raises ``ValueError`` whose arguments are the field and a sentence."""
        return [self._segment(at) for at in range(len(self.images))]

    def _segment(self, at: int) -> Segment:
        texts = self._for_picture("prompts", self.prompts, at) if _nested(self.prompts) else self.prompts
        prompts = [SegmentPrompt(text=str(text)) for text in texts]
        if self.boxes is not None:
            boxes = self._for_picture("boxes", self.boxes, at)
            prompts = prompts or [SegmentPrompt()] * len(boxes)
            if len(boxes) != len(prompts):
                raise ValueError(
                    "boxes",
                    f"boxes of {len(boxes)} prompts for {len(prompts)} prompts; send a list for each, "
                    "empty where there are none",
                )
            prompts = [
                SegmentPrompt(text=prompt.text, boxes=own) for prompt, own in zip(prompts, boxes, strict=True)
            ]
        priors: tuple[float, ...] | None = None
        if self.resolve_overlaps is not False:
            given = self.resolve_overlaps
            priors = given if isinstance(given, tuple) else (1.0,) * len(prompts)
        return Segment(
            prompts=tuple(prompts),
            threshold=self.threshold,
            mask_threshold=self.mask_threshold,
            priors=priors,
        )

    def _for_picture(self, field: str, lists: Any, at: int) -> Any:
        if len(lists) != len(self.images):
            raise ValueError(
                field, f"{len(lists)} lists of {field} for {len(self.images)} images; send one for each"
            )
        return lists[at]


class GroundingDinoBody(VisionBody):
    prompts: Labels = Field(description="what to look for; answers name them in this spelling")
    box_threshold: Part = Field(0.4, description="least score of a box")
    text_threshold: Part = Field(0.3, description="least score of a word in text_labels")

    def asks(self) -> list[Ask]:
        ask = Detect(
            labels=self.prompts, box_threshold=self.box_threshold, text_threshold=self.text_threshold
        )
        return [ask] * len(self.images)


class DepthAnythingBody(VisionBody):
    export_format: ExportFormat | None = Field(
        None,
        description="npz is answered beside depth_data, in export; the others need more than depth, and "
        "metadata.export says so",
    )
    output_format: DepthFormat = Field(
        "png", description="of depth_data: 8 or 16 bits between metadata.min and max, float32, or colours"
    )
    focal: Number | None = Field(
        None, description="of the camera in pixels, for models that measure in metres"
    )

    def asks(self) -> list[Ask]:
        return [Depth(focal=self.focal)] * len(self.images)


class Dinov3Body(VisionBody):
    encoding: FeatureEncoding = Field("list", description="base64: little-endian numbers, row by row")
    dtype: FloatFormat = Field("float32", description="of base64")
    normalize: StrictBool = Field(False, description="features of length 1")
    pooled_only: StrictBool = Field(False, description="leaves last_hidden_state out")

    def asks(self) -> list[Ask]:
        return [Embed()] * len(self.images)


def _nested(prompts: tuple[Any, ...]) -> bool:
    return bool(prompts) and isinstance(prompts[0], tuple)


def fault(field: str, message: str) -> FieldFault:
    return FieldFault("invalid_parameter", message, place=(field,), kind="value_error")
