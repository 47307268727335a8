"""What OpenAI's image routes may be asked, field by field, from JSON and from forms. It knows no model.

Source: the types of the ``openai`` client; beyond them the names that vLLM-Omni and SGLang use.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    ValidationError,
    WithJsonSchema,
)

from api.body import LongText, parse_json
from api.flat_fields import FlatLora
from api.form import Form, Part
from api.images import ImageFormat
from api.intake import ImageSource
from api.json_fields import Number, Text, WholeNumber, unknown
from core.errors import RequestError

# Fields of the standard that mean nothing here: they are taken and have no effect.
IGNORED: Final = frozenset(
    {"moderation", "style", "user", "safety_identifier", "input_fidelity", "complexity"}
)
# Fields of the standard that ask for what cannot be had here.
REFUSED: Final = {
    "frame_count": "animations cannot be made here",
    "frame_duration_ms": "animations cannot be made here",
    "svg": "drawings cannot be made here",
    "markup": "an overlay cannot be read here; say in the prompt what to change, or send a mask",
}

_INDEXED: Final = re.compile(r"(image|mask|url)\[\d*\]")


def _pictures(value: object) -> list[str | LongText | bytes]:
    """One picture or several; each as text, or as OpenAI's JSON has it, ``{"image_url": …}``."""
    found: list[str | LongText | bytes] = []
    for item in value if isinstance(value, list) else [value]:
        text = item.get("image_url") if isinstance(item, dict) and item.keys() == {"image_url"} else item
        if not isinstance(text, str | LongText | bytes):
            raise ValueError('should be a URL, a data URI or base64, or {"image_url": …}, or a list of them')
        if text:
            found.append(text)
    return found


def _loras(value: object) -> list[FlatLora]:
    return [
        FlatLora(id=item, scale=None) if isinstance(item, str) else FlatLora.model_validate(item)
        for item in (value if isinstance(value, list) else [value])
    ]


_Pictures = Annotated[
    list[Any],
    PlainValidator(_pictures),
    WithJsonSchema({"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
_Loras = Annotated[
    list[FlatLora],
    PlainValidator(_loras),
    WithJsonSchema({"type": "array", "items": FlatLora.model_json_schema()}),
]


class Generation(BaseModel):
    """The body of ``/v1/images/generations``. Absent and null leave the choice to the server."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    prompt: Text | None = None
    model: Text | None = Field(None, description="a model of GET /v1/models; OpenAI's names mean the default")
    n: WholeNumber | None = Field(None, ge=1, le=10, description="pictures, of the seeds seed, seed + 1 …")
    size: Text | None = Field(None, description="WIDTHxHEIGHT or auto")
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"] | None = Field(
        None, description="low is 4 steps, medium 8, anything else the model's own number"
    )
    background: Literal["opaque", "auto"] | None = None
    output_format: ImageFormat | None = None
    output_compression: WholeNumber | None = Field(None, ge=0, le=100, description="quality of jpeg and webp")
    response_format: Literal["b64_json", "url"] | None = None
    stream: StrictBool | None = None
    partial_images: WholeNumber | None = Field(None, ge=0, le=3, description="previews in a stream")
    seed: WholeNumber | None = None
    num_inference_steps: WholeNumber | None = Field(None, description="wins over quality")
    true_cfg_scale: Number | None = Field(None, description="1 means unguided; wins over guidance_scale")
    guidance_scale: Number | None = None
    negative_prompt: Text | None = None
    loras: _Loras | None = None
    lora: _Loras | None = Field(None, description="one LoRA: its id, or an object like those of loras")
    step_cache: Number | None = None

    @property
    def adapters(self) -> tuple[tuple[str, float], ...]:
        wanted = (*(self.loras or ()), *(self.lora or ()))
        return tuple((lora.id, 1.0 if lora.scale is None else lora.scale) for lora in wanted)

    @property
    def cfg(self) -> float | None:
        return self.guidance_scale if self.true_cfg_scale is None else self.true_cfg_scale

    @property
    def sides(self) -> tuple[int, int] | None:
        """(width, height), None for auto. Raises ``RequestError``."""
        if self.size is None or self.size.strip().lower() in ("", "auto"):
            return None
        sides = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", self.size.strip(), re.ASCII)
        if sides is None:
            raise RequestError(
                "invalid_parameter", "size should look like 1024x1024, or be auto", param="size"
            )
        return int(sides[1]), int(sides[2])


class Edit(Generation):
    """The body of ``/v1/images/edits``."""

    image: _Pictures | None = Field(None, description="URL, data URI or base64; in forms files")
    images: _Pictures | None = None
    url: _Pictures | None = None
    mask: _Pictures | None = Field(
        None, description="transparent where the first picture is painted anew; as large as that"
    )
    strength: Number | None = Field(None, description="for models that begin at the picture: over 0 to 1")

    @property
    def sources(self) -> list[ImageSource]:
        ways = ("image", "images", "url")
        return [ImageSource(picture, way) for way in ways for picture in getattr(self, way) or ()]

    @property
    def mask_source(self) -> ImageSource | None:
        """Raises ``RequestError``."""
        masks = self.mask or []
        if len(masks) > 1:
            raise RequestError("invalid_parameter", "one mask is enough; send it once", param="mask")
        return ImageSource(masks[0], "mask", transparent=True) if masks else None


def checked(content: object, kind: type[Generation]) -> Generation:
    """Raises ``RequestError`` naming the field, never its content."""
    if not isinstance(content, dict):
        raise RequestError("invalid_parameter", "the body must be an object")
    asked = {name: value for name, value in content.items() if value is not None and name not in IGNORED}
    _refuse_what_cannot_be_had(asked)
    try:
        return kind.model_validate(asked)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "extra_forbidden":
        raise unknown(str(first["loc"][-1]), kind.model_fields)
    field = ".".join(str(part) for part in first["loc"])
    reason = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    raise RequestError("invalid_parameter", f"{field} {reason}", param=field)


def from_form(form: Form) -> dict[str, Any]:
    """The fields of a form as JSON would have them: there numbers and truths come as text.

    Raises ``RequestError``.
    """
    content: dict[str, Any] = {}
    for part in form.parts:
        name = _plain(part.name)
        if name in ("image", "images", "url", "mask"):
            content.setdefault(name, []).append(_file_or_text(part))
        elif name in REFUSED:
            content[name] = True
        else:
            text = form.text(part.name)
            if text:  # some clients send every field they know
                content[name] = _value(name, text)
    return content


def _plain(name: str) -> str:
    """A field's name without the index that clients put behind those of lists and objects."""
    if name.startswith("svg["):
        return "svg"
    found = _INDEXED.fullmatch(name)
    return found[1] if found else name


def _file_or_text(part: Part) -> str | bytes:
    if part.filename is None and part.data.isascii():
        return part.data.decode("ascii").strip()
    return part.data


_KINDS: Final[Mapping[str, type]] = {
    **dict.fromkeys(("n", "output_compression", "partial_images", "seed", "num_inference_steps"), int),
    **dict.fromkeys(("true_cfg_scale", "guidance_scale", "strength", "step_cache"), float),
    **dict.fromkeys(("lora", "loras"), list),
    "stream": bool,
}


def _value(name: str, text: str) -> object:
    kind = _KINDS.get(name, str)
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
        if kind is list:
            return parse_json(text.encode()) if text.lstrip()[:1] in ("{", "[") else text
        if len(text) > 40 and kind is not str:
            raise ValueError
        return kind(text)
    except (ValueError, KeyError):
        article = "a whole number" if kind is int else "a number" if kind is float else "true or false"
        raise RequestError("invalid_parameter", f"{name} should be {article}", param=name) from None


def _refuse_what_cannot_be_had(asked: Mapping[str, object]) -> None:
    for name in REFUSED.keys() & asked.keys():
        raise RequestError("invalid_parameter", f"{REFUSED[name]}; leave {name} out", param=name)
    if asked.get("background") == "transparent":
        raise RequestError(
            "invalid_parameter",
            "background transparent cannot be made here; use opaque or auto",
            param="background",
        )
    if asked.get("output_format") in ("gif", "svg"):
        raise RequestError(
            "invalid_parameter",
            f"output_format {asked['output_format']} cannot be made here; use png, jpeg or webp",
            param="output_format",
        )
