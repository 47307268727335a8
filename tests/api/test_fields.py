"""Strict objects of a body: faults are placed, misspelt names are met with the nearest, nothing is echoed."""

import pytest
from pydantic import Field

from api.body import LongText
from api.fields import FieldFault, Wire, as_fault, checked, schema_of
from api.json_fields import Number, Text, WholeNumber
from core.errors import CapacityError, RequestError


class Inner(Wire):
    width: WholeNumber | None = None
    scale: Number = 1.0


class Outer(Wire):
    prompt: Text = Field(max_length=100)
    inner: Inner | None = None
    several: list[Inner] = Field(default_factory=list)


def fault(content: object) -> FieldFault:
    with pytest.raises(FieldFault) as caught:
        checked(Outer, content)
    return caught.value


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({}, ("prompt",)),
        ({"prompt": None}, ("prompt",)),
        ({"prompt": "\ud800"}, ("prompt",)),
        ({"prompt": LongText(memoryview(b"x" * 10))}, ("prompt",)),
        ({"prompt": "p", "inner": {"width": "7"}}, ("inner", "width")),
        ({"prompt": "p", "inner": {"width": True}}, ("inner", "width")),
        ({"prompt": "p", "inner": {"width": 2**70}}, ("inner", "width")),
        ({"prompt": "p", "inner": {"scale": float("nan")}}, ("inner", "scale")),
        ({"prompt": "p", "several": [{}, {"scale": "x"}]}, ("several", 1, "scale")),
        (None, ()),
    ],
)
def test_a_fault_has_its_place(content: object, place: tuple[str | int, ...]) -> None:
    """A page can put the sentence beside the field; the place is the only word of the caller's in it."""
    error = fault(content)
    assert (error.code, error.place) == ("invalid_parameter", place)
    (detail,) = error.detail
    assert detail["loc"] == ["body", *place]
    assert detail.keys() == {"type", "loc", "msg"}


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ({"prompt": "p", "promt": 1}, "'prompt'"),
        ({"prompt": "p", "inner": {"widht": 1}}, "'width'"),
        ({"prompt": "p", "several": [{"scael": 1}]}, "'scale'"),
        ({"prompt": "p", "secret-word": 1}, "known: prompt, inner, several"),
    ],
)
def test_an_unknown_name_is_met_with_the_nearest_of_its_place(content: object, hint: str) -> None:
    """And is not repeated: it could be anything."""
    error = fault(content)
    assert error.code == "unknown_field"
    assert hint in error.message
    assert "secret" not in error.message


def test_a_models_own_limit_is_placed_where_its_caller_wrote_it() -> None:
    """It knows its own word for the field alone."""
    found = as_fault(
        RequestError("invalid_parameter", "steps 9 is over 8", param="steps"), {"steps": ("params", "n")}
    )
    assert isinstance(found, FieldFault)
    assert (found.place, found.message, found.param) == (("params", "n"), "n 9 is over 8", "params.n")
    full = CapacityError("queue_full", "full")
    assert as_fault(full, {}) is full


def test_a_schema_stands_alone() -> None:
    """It is shown inside another document, where its references would lead nowhere."""
    assert "$ref" not in str(schema_of(Outer))
    assert "width" in schema_of(Outer)["properties"]["several"]["items"]["properties"]
