"""Features as a JSON answer: nested lists, as the first clients read them, or base64 of a few bytes each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pybase64
from numpy.typing import NDArray

from api.vision_fields import Dinov3Body
from core.errors import RequestError
from core.vision import Features

Floats = NDArray[np.float32]


def features_answer(body: Dinov3Body, found: Sequence[Features]) -> dict[str, Any]:
    """``features`` of all pictures, stacked. Raises ``RequestError`` for those that cannot be."""
    if len({(one.length, one.width) for one in found}) > 1:
        raise RequestError(
            "invalid_parameter",
            "the pictures have different numbers of patches at this model, so they have no common shape; "
            "send those of one shape together",
            param="images",
        )
    answer: dict[str, Any] = {}
    if not body.pooled_only:
        tokens = np.stack([tokens_of(one) for one in found])
        answer |= _written("last_hidden_state", tokens, body)
    pooled = np.stack([np.frombuffer(one.pooled, "<f4") for one in found])
    answer |= _written("pooler_output", pooled, body)
    columns, rows = found[0].grid
    return answer | {
        "patch_grid": [columns, rows],
        # Class token and registers go first.
        "first_patch": found[0].length - columns * rows,
        "encoding": body.encoding,
        "dtype": body.dtype if body.encoding == "base64" else "float32",
        "normalized": body.normalize,
    }


def tokens_of(found: Features) -> Floats:
    """[length, width]"""
    return np.frombuffer(found.tokens, "<f4").reshape(found.length, found.width)


def nbytes(body: Dinov3Body, found: Sequence[Features]) -> int:
    """About how long the answer becomes, before it is made."""
    each = 14 if body.encoding == "list" else 6
    numbers = sum(one.width * (1 if body.pooled_only else 1 + one.length) for one in found)
    return each * numbers


def normalized(values: Floats) -> Floats:
    """Each row of length 1; one of zeros stays as it is."""
    lengths = np.linalg.norm(values, axis=-1, keepdims=True)
    shorter: Floats = (values / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return shorter


def _written(name: str, values: Floats, body: Dinov3Body) -> dict[str, Any]:
    if body.normalize:
        values = normalized(values)
    shape = list(values.shape)
    if body.encoding == "list":
        return {name: np.ascontiguousarray(values), f"{name}_shape": shape}
    kind = "<f2" if body.dtype == "float16" else "<f4"
    return {name: pybase64.b64encode(values.astype(kind).tobytes()).decode(), f"{name}_shape": shape}
