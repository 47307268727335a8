"""What the flat dialect may be asked and what it answers, field by field. It knows no model and no HTTP."""

from typing import Annotated, Final

from pydantic import BaseModel, Field, StrictStr, WithJsonSchema

from api.images import ImageFormat
from api.intake import ImageSource
from api.json_fields import STRICT, Number, Picture, Text, WholeNumber
from core.errors import RequestError

MAX_TIMEOUT: Final = 3600.0


class FlatLora(BaseModel):
    """One LoRA over the model."""

    model_config = STRICT

    id: StrictStr = Field(description="one that the operator allows in USER_LORAS")
    scale: Number | None = Field(None, description="-4 to 4; absent means 1")


# Whole, not by reference: the schema is shown in the middle of another document.
_Lora = Annotated[FlatLora, WithJsonSchema(FlatLora.model_json_schema())]


class FlatInput(BaseModel):
    """What ``input`` may hold. Absent, null and, for ``seed``, -1 leave the choice to the server."""

    model_config = STRICT

    prompt: Text | None = Field(
        None, description="what to do to the picture, or what to show; echoed verbatim"
    )
    image_url: Picture | None = Field(None, description="public http(s) URL; wins over image_base64")
    image_base64: Picture | None = Field(None, description="base64 or data URI")
    image_url_2: Picture | None = Field(None, description="second reference picture")
    image_base64_2: Picture | None = None
    image_url_3: Picture | None = Field(None, description="third reference picture")
    image_base64_3: Picture | None = None
    image: Picture | None = Field(None, description="URL, data URI or base64, told apart by looking")
    images: list[Picture] | None = Field(None, description="1 to 3 pictures, each as in image")
    mask: Picture | None = Field(
        None,
        description="URL, data URI or base64; white is painted anew, black kept; as large as the picture",
    )
    mask_url: Picture | None = Field(None, description="public http(s) URL; wins over mask_base64")
    mask_base64: Picture | None = Field(None, description="base64 or data URI")
    strength: Number | None = Field(
        None, description="how much of the picture is redrawn, over 0 to 1; for models that begin at it"
    )
    seed: WholeNumber | None = None
    width: WholeNumber | None = Field(None, description="of the answer, in pixels")
    height: WholeNumber | None = Field(None, description="of the answer, in pixels")
    num_inference_steps: WholeNumber | None = None
    true_cfg_scale: Number | None = Field(None, description="1 means unguided")
    negative_prompt: Text | None = None
    loras: list[_Lora] | None = Field(None, description="LoRAs over the model, each named once")
    step_cache: Number | None = Field(
        None, description="0 to 1; over 0, steps that change less than this reuse parts of the one before"
    )
    output_format: ImageFormat | None = None
    model: StrictStr | None = Field(None, description="registry name or alias")
    timeout: Number | None = Field(
        None, gt=0, le=MAX_TIMEOUT, description="seconds after which the answer is no use"
    )

    @property
    def adapters(self) -> tuple[tuple[str, float], ...]:
        return tuple((lora.id, 1.0 if lora.scale is None else lora.scale) for lora in self.loras or ())


class FlatAnswer(BaseModel):
    """What a finished request answers."""

    image: str = Field(description="base64 without a prefix")
    prompt: str
    num_inference_steps: int
    lightning_enabled: bool
    seed: int = Field(description="the one used; sending it again repeats the picture")
    model: str
    width: int
    height: int
    output_format: ImageFormat


def picture_sources(wishes: FlatInput) -> list[ImageSource]:
    """The pictures in order. Empty strings count as absent: some clients send every field they know."""
    numbered = (_either(wishes, f"image_url{end}", f"image_base64{end}") for end in ("", "_2", "_3"))
    ways = [
        [source for source in numbered if source],
        [ImageSource(wishes.image, "image")] if wishes.image else [],
        [ImageSource(content, f"images.{at}") for at, content in enumerate(wishes.images or ())],
    ]
    used = [way for way in ways if way]
    if len(used) > 1:
        raise RequestError(
            "invalid_parameter", "pictures are named in two ways; use image_url/image_base64, image or images"
        )
    return used[0] if used else []


def mask_source(wishes: FlatInput) -> ImageSource | None:
    named = _either(wishes, "mask_url", "mask_base64")
    if named and wishes.mask:
        raise RequestError(
            "invalid_parameter",
            "the mask is named in two ways; use mask or mask_url/mask_base64",
            param="mask",
        )
    return named or _either(wishes, "mask")


def _either(wishes: FlatInput, *fields: str) -> ImageSource | None:
    """The first of ``fields`` that says anything."""
    return next((ImageSource(text, field) for field in fields if (text := getattr(wishes, field))), None)
