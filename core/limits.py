"""Numbers and sizes held against their limits; a refusal names field, limit, value and remedy."""

import math
from typing import TypeVar

from core.errors import RequestError
from core.request import Size

Number = TypeVar("Number", int, float)


def fit_area(size: Size, area: int, multiple: int) -> Size:
    """The size of ``size``'s aspect with about ``area`` pixels, each side a multiple of ``multiple``.

    Source: ``calculate_dimensions`` of diffusers' ``pipeline_qwenimage_edit_plus.py``, with one
    multiple as the floor so that an extreme aspect cannot round a side to zero.
    """
    ratio = size[0] / size[1]
    width = math.sqrt(area * ratio)
    height = width / ratio
    return (
        max(multiple, round(width / multiple) * multiple),
        max(multiple, round(height / multiple) * multiple),
    )


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def within(field: str, value: Number, low: Number, high: Number) -> Number:
    if not low <= value <= high:  # also refuses NaN
        # A number of a thousand digits is not worth repeating, and cannot be made a float.
        shown = f" {value}" if abs(value) < 1e15 or value != value else ""
        raise invalid(field, f"{field}{shown} is outside {low} to {high}; choose one inside")
    return value


def invalid(field: str, message: str) -> RequestError:
    return RequestError("invalid_parameter", message, param=field)
