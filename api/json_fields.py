"""Field types that JSON dialects share, and refusals that name a field in its dialect's own word."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Final, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictInt,
    StrictStr,
    ValidationError,
    WithJsonSchema,
)

from api.body import LongText
from core.errors import RequestError

M = TypeVar("M", bound=BaseModel)

STRICT: Final = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


def _encodable(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("holds half a surrogate pair") from None
    return text


def _text(value: object) -> str | LongText:
    if not isinstance(value, str | LongText):
        raise ValueError("should be a valid string")
    return value


def _short(text: object) -> object:
    if isinstance(text, LongText):
        raise ValueError("is far over the limit; shorten it")
    return text


Text = Annotated[StrictStr, BeforeValidator(_short), AfterValidator(_encodable)]
Picture = Annotated[str | LongText, PlainValidator(_text), WithJsonSchema({"type": "string"})]
WholeNumber = Annotated[StrictInt, Field(ge=-(2**63), le=2**63)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


def checked(model: type[M], value: object, whole: str) -> M:
    """``value`` as a ``model``; ``whole`` is what callers know it as.

    Raises ``RequestError`` naming the field, never its content.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    *place, last = first["loc"] or (None,)
    if first["type"] == "extra_forbidden":
        where = ".".join(str(part) for part in place)
        raise unknown(str(last), _names(model, place), where or None)
    if last is None:
        raise RequestError("invalid_parameter", f"{whole} must be an object", param=whole)
    field = ".".join(str(part) for part in first["loc"])
    reason = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    raise RequestError("invalid_parameter", f"{field} {reason}", param=field)


def unknown(name: str, known: Iterable[str], place: str | None = None) -> RequestError:
    """For a field that is none of ``known``. The caller's own word is not repeated: it could be anything."""
    names = list(known)
    near = difflib.get_close_matches(name[:100], names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    where = f"a field of {place}" if place else "a field"
    return RequestError("unknown_field", f"{where} is unknown; {hint}", param=place)


def in_words(error: RequestError, words: Mapping[str, str]) -> RequestError:
    """The refusal, with a dialect's own word for what ``PipelineSpec.request`` calls otherwise."""
    word = words.get(error.param or "")
    if word is None:
        return error
    assert error.param is not None
    return RequestError(error.code, error.message.replace(error.param, word, 1), param=word)


def _names(model: type[BaseModel], place: Iterable[object]) -> list[str]:
    """Fields of the model at ``place``, where list positions are numbers."""
    for part in place:
        if isinstance(part, int):
            continue
        found = _inner(model.model_fields[str(part)].annotation)
        if found is None:
            return []
        model = found
    return list(model.model_fields)


def _inner(kind: object) -> type[BaseModel] | None:
    """The model inside of ``list[Model]``, ``Model | None`` and the like."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    arguments = getattr(kind, "__args__", ())
    return next((found for argument in arguments if (found := _inner(argument)) is not None), None)
