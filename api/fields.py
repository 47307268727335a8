"""Strict wire models for the dialects that began as FastAPI services, and their faults in its words.

Knows no dialect: each brings its own models and decides what becomes of a ``FieldFault``.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
)

from api.dialect import Answer, Arrival
from api.errors import message_of, status_of
from api.json_fields import unknown
from core.errors import RequestError, ServingError


class Wire(BaseModel):
    """An object of a body: its fields, and no others."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


Model = TypeVar("Model", bound=Wire)


class FieldFault(RequestError):
    """A body that is not what its model says. ``detail`` is FastAPI's list, without the caller's input.

    said: what stands there, beside the place; the message is read without one.
    """

    def __init__(
        self, code: str, message: str, *, place: tuple[str | int, ...], kind: str, said: str | None = None
    ) -> None:
        super().__init__(code, message, param=".".join(map(str, place)) or None)
        self.place = place
        self.kind = kind
        self.said = said

    @property
    def detail(self) -> list[dict[str, Any]]:
        return [{"type": self.kind, "loc": ["body", *self.place], "msg": self.said or message_of(self)}]


def checked(model: type[Model], content: object) -> Model:
    """Raises ``FieldFault`` of the first fault."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    place, kind = first["loc"], first["type"]
    if kind == "extra_forbidden":
        # The caller's own word is not repeated: it could be anything.
        fault = unknown(str(place[-1]), _known(model, place[:-1]), ".".join(map(str, place[:-1])) or None)
        raise FieldFault(fault.code, fault.message, place=place[:-1], kind=kind)
    said = first["msg"].removeprefix("Value error, ")
    if kind == "model_type":  # pydantic would name the class
        said = "should be an object"
    field = ".".join(map(str, place)) or "the body"
    message = f"{field}: {said}"
    raise FieldFault("invalid_parameter", message, place=place, kind=kind, said=said)


def as_fault(error: ServingError, places: Mapping[str, tuple[str, ...]]) -> ServingError:
    """A fault that a model's own limits found, at the place its parameter has in the body."""
    if error.code != "invalid_parameter" or error.param is None:
        return error
    place = places.get(error.param, (error.param,))
    message = error.message.replace(error.param, place[-1], 1)
    return FieldFault(error.code, message, place=place, kind="value_error")


def worded(
    error: ServingError, arrival: Arrival, *, status: int | None = None, message: str | None = None
) -> Answer:
    """An error as these services' clients read it, in ``detail``; what a program needs stands beside.

    message: the contract's own sentence for ``detail``; ``error`` says what went wrong all the same.
    """
    detail = error.detail if isinstance(error, FieldFault) else message or message_of(error)
    body = {"detail": detail, "error": message_of(error), "code": error.code, "request_id": arrival.shown_id}
    if error.param is not None:
        body["param"] = error.param
    return Answer(orjson.dumps(body), status or status_of(error))


def _known(model: type[BaseModel], place: tuple[str | int, ...]) -> list[str]:
    fields = model.model_fields
    for step in place:
        inner = fields[str(step)].annotation if str(step) in fields else None
        for option in (inner, *getattr(inner, "__args__", ())):
            if isinstance(option, type) and issubclass(option, BaseModel):
                fields = option.model_fields
    return list(fields)


def body_of(model: type[Wire], *, required: bool = True) -> dict[str, Any]:
    """``requestBody`` in OpenAPI's words."""
    return {"required": required, "content": {"application/json": {"schema": schema_of(model)}}}


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """Whole, not by reference: it is shown in the middle of another document."""
    schema = model.model_json_schema(by_alias=False)
    parts = schema.pop("$defs", {})

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return resolved(parts[value["$ref"].rpartition("/")[2]])
            return {key: resolved(inner) for key, inner in value.items()}
        return [resolved(inner) for inner in value] if isinstance(value, list) else value

    whole: dict[str, Any] = resolved(schema)
    return whole


FAULTS: Final[Mapping[int | str, dict[str, Any]]] = {
    status: {"description": text}
    for status, text in (
        (400, "A rule of the contract is broken, or no valid JSON"),
        (404, "No such model"),
        (408, "The body came too slowly"),
        (413, "The body or a picture is too large"),
        (415, "The body is compressed, or of another kind"),
        (422, "A field is not acceptable"),
        (429, "Too much waits already; Retry-After says when to come back"),
        (500, "The server failed"),
        (503, "Not ready, shutting down, or out of device memory"),
        (504, "The deadline passed"),
    )
}
