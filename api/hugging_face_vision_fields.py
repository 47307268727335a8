"""What the Hugging Face tasks that look at a picture may be asked, field by field. It knows no model."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, StrictBool, StrictStr, WithJsonSchema

from api.hugging_face_fields import IGNORED
from api.json_fields import STRICT, Number, Picture

_Absent: Final = BeforeValidator(lambda value: {} if value is None else value)
Share = Annotated[Number, Field(ge=0, le=1)]


def _labels(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
        raise ValueError("should be a list of texts")
    if len(value) > 1000:
        raise ValueError(f"holds {len(value)} texts, over the limit of 1000; send fewer")
    return tuple(value)


Labels = Annotated[
    tuple[str, ...],
    PlainValidator(_labels),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 1}),
]


class Parameters(BaseModel):
    """Of all of them."""

    model_config = STRICT

    model: StrictStr | None = Field(None, description="name, alias or hub id; else ?model= in the address")


class LabelParameters(Parameters):
    candidate_labels: Labels | None = Field(None, description="what to look for; else ?candidate_labels=a,b")
    threshold: Share = Field(0.4, description="least score of a box")


class SegmentationParameters(LabelParameters):
    threshold: Share = Field(0.5, description="least score of an instance")
    mask_threshold: Share = Field(0.5, description="least probability of a pixel")
    overlap_mask_area_threshold: Share | None = Field(
        None, description=f"ignored: {IGNORED['overlap_mask_area_threshold']}"
    )
    subtask: Literal["instance", "panoptic"] | None = Field(
        None, description="instance: masks may overlap; panoptic: each pixel has one"
    )


class FeaturesParameters(Parameters):
    pool: StrictBool = Field(False, description="true: one vector for the whole picture")
    normalize: StrictBool = Field(False, description="features of length 1")


class _Body(BaseModel):
    model_config = STRICT

    inputs: Picture = Field(description="base64, data URI or public http(s) URL")
    options: dict[str, Any] | None = Field(None, description=f"ignored: {IGNORED['options']}")


class ObjectDetectionBody(_Body):
    parameters: Annotated[LabelParameters, _Absent] = LabelParameters()


class ZeroShotBody(_Body):
    parameters: Annotated[LabelParameters, _Absent] = LabelParameters()


class SegmentationBody(_Body):
    parameters: Annotated[SegmentationParameters, _Absent] = SegmentationParameters()


class DepthBody(_Body):
    parameters: Annotated[Parameters, _Absent] = Parameters()


class FeaturesBody(_Body):
    parameters: Annotated[FeaturesParameters, _Absent] = FeaturesParameters()
