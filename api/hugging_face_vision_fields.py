"""What the Hugging Face tasks that look at a picture may be asked, field by field. It knows no model."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, Field, StrictBool, StrictStr

from api.hugging_face_fields import IGNORED
from api.json_fields import STRICT, Picture
from api.vision_fields import Labels, Part

_Absent: Final = BeforeValidator(lambda value: {} if value is None else value)


class Parameters(BaseModel):
    """Of all of them."""

    model_config = STRICT

    model: StrictStr | None = Field(None, description="name, alias or hub id; else ?model= in the address")


class LabelParameters(Parameters):
    candidate_labels: Labels | None = Field(None, description="what to look for; else ?candidate_labels=a,b")
    threshold: Part = Field(0.4, description="least score of a box")


class SegmentationParameters(LabelParameters):
    threshold: Part = Field(0.5, description="least score of an instance")
    mask_threshold: Part = Field(0.5, description="least probability of a pixel")
    overlap_mask_area_threshold: Part | None = Field(
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
