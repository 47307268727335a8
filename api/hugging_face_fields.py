"""What the Hugging Face tasks may be asked, field by field. It knows no model."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, Field, StrictStr

from api.images import IMAGE_FORMATS, ImageFormat
from api.json_fields import STRICT, Number, Picture, Text, WholeNumber
from core.errors import RequestError

ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The picture itself",
        "content": {
            f"image/{name}": {"schema": {"type": "string", "format": "binary"}} for name in IMAGE_FORMATS
        },
    },
    "default": {"description": 'Refused: {"error": a sentence, "code": a stable word}'},
}

# Of the standard: taken, and without effect, for these reasons.
IGNORED: Final = {
    "scheduler": "each model has the one solver it was made for",
    "overlap_mask_area_threshold": "no two masks are joined into one",
    "options": "every request waits for its model, and no answer is kept",
}


class _Picture(BaseModel):
    """Parameters of both tasks."""

    model_config = STRICT

    negative_prompt: Text | None = None
    num_inference_steps: WholeNumber | None = None
    guidance_scale: Number | None = Field(None, description="1 means unguided")
    seed: WholeNumber | None = Field(None, description="absent, null and -1 mean random; see X-Seed")
    width: WholeNumber | None = Field(None, description="of the answer, in pixels")
    height: WholeNumber | None = Field(None, description="of the answer, in pixels")
    scheduler: StrictStr | None = Field(None, description=f"ignored: {IGNORED['scheduler']}")
    model: StrictStr | None = Field(None, description="registry name or alias; else ?model= in the address")
    output_format: ImageFormat | None = Field(None, description="else the Accept header decides")


class TextToImageParameters(_Picture):
    """``parameters`` of text-to-image."""


class TargetSize(BaseModel):
    """Of the answer, in pixels."""

    model_config = STRICT

    width: WholeNumber
    height: WholeNumber


class ImageToImageParameters(_Picture):
    """``parameters`` of image-to-image."""

    prompt: Text | None = Field(None, description="what to do to the picture")
    target_size: TargetSize | None = None
    strength: Number | None = Field(
        None, description="how much of the picture is redrawn, over 0 to 1; for models that begin at it"
    )
    mask_image: Picture | None = Field(None, description="white is painted anew, black kept")

    @property
    def size(self) -> tuple[int | None, int | None]:
        """Width and height. Raises ``RequestError`` when they are said twice."""
        if self.target_size is None:
            return self.width, self.height
        if self.width is not None or self.height is not None:
            raise RequestError(
                "invalid_parameter",
                "the size is named in two ways; use target_size, or width and height",
                param="target_size",
            )
        return self.target_size.width, self.target_size.height


_Absent: Final = BeforeValidator(lambda value: {} if value is None else value)


class _Body(BaseModel):
    model_config = STRICT

    options: dict[str, Any] | None = Field(None, description=f"ignored: {IGNORED['options']}")


class TextToImageBody(_Body):
    """The body of text-to-image."""

    inputs: Text = Field(description="what to show")
    parameters: Annotated[TextToImageParameters, _Absent] = TextToImageParameters()


class ImageToImageBody(_Body):
    """The body of image-to-image, where it is JSON."""

    inputs: Picture = Field(description="base64, data URI or public http(s) URL")
    parameters: Annotated[ImageToImageParameters, _Absent] = ImageToImageParameters()


def request_body(model: type[BaseModel], *, raw: bool) -> dict[str, Any]:
    """raw: the body may be the picture itself."""
    content: dict[str, Any] = {"application/json": {"schema": _without_references(model.model_json_schema())}}
    if raw:
        content["image/*"] = {"schema": {"type": "string", "format": "binary"}}
    return {"required": True, "content": content}


def preferred_format(headers: Mapping[str, str]) -> ImageFormat | None:
    """What the Accept header likes best of what can be written; None where it leaves the choice open."""
    best: ImageFormat | None = None
    most = 0.0
    for wish in headers.get("accept", "")[:1000].split(","):
        kind, *options = (part.strip().lower() for part in wish.split(";"))
        weight = next((_weight(option[2:]) for option in options if option.startswith("q=")), 1.0)
        found = next(
            (name for name in IMAGE_FORMATS if kind in (f"image/{name}", _OLD_NAMES.get(name))), None
        )
        if found is not None and weight > most:
            best, most = found, weight
    return best


_OLD_NAMES: Final[Mapping[str, str]] = {"jpeg": "image/jpg"}


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _without_references(schema: dict[str, Any]) -> dict[str, Any]:
    """Whole, because it is shown in the middle of another document."""
    definitions = schema.pop("$defs", {})

    def whole(part: Any) -> Any:
        if isinstance(part, list):
            return [whole(item) for item in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return whole(definitions[part["$ref"].rpartition("/")[2]])
        return {name: whole(value) for name, value in part.items()}

    result: dict[str, Any] = whole(schema)
    return result
