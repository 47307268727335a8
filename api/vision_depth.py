"""A depth map as a file: grey of 8 or 16 bits between its least and its greatest value, numbers, colours."""

import io
from typing import Any, Final

import numpy as np
import pybase64
from numpy.typing import NDArray

from api.colours import by_value
from api.png import png
from api.vision_fields import DepthAnythingBody, DepthFormat
from core.vision import DepthMap

# What more than depth is needed for: positions of cameras, or a scene of splats.
_NOT_MADE: Final = frozenset({"glb", "ply", "gs_ply", "gs_video"})


def depth_fields(found: DepthMap, body: DepthAnythingBody) -> dict[str, Any]:
    """``depth_data``, ``format`` and ``metadata`` of one picture; ``export`` where it was asked for."""
    values = values_of(found)
    height, width = values.shape
    metadata: dict[str, Any] = {
        "shape": [1, height, width],
        "min": float(values.min()),
        "max": float(values.max()),
        "kind": found.kind,
        "unit": found.unit,
    }
    answer: dict[str, Any] = {
        "depth_data": pybase64.b64encode(depth_file(found, body.output_format)).decode(),
        "format": f"{body.output_format}_base64",
        "metadata": metadata,
    }
    if body.export_format == "npz":
        answer["export"] = {"format": "npz", "data": pybase64.b64encode(_npz(values)).decode()}
    elif body.export_format in _NOT_MADE:
        metadata["export"] = (
            f"no {body.export_format} is made here: it needs cameras, which one picture does not tell; "
            "depth_data holds the depth"
        )
    return answer


def depth_file(found: DepthMap, form: DepthFormat) -> bytes:
    values = values_of(found)
    match form:
        case "png":
            return png(_levels(values, 255).astype(np.uint8).tobytes(), found.size, "grey")
        case "png16":
            return png(_levels(values, 65_535).astype(">u2").tobytes(), found.size, "grey16")
        case "colour":
            return png(depth_colours(found).tobytes(), found.size)
        case "npy":
            out = io.BytesIO()
            np.save(out, values, allow_pickle=False)
            return out.getvalue()


def depth_colours(found: DepthMap) -> NDArray[np.uint8]:
    """[height, width, 3]; what is near is bright, whichever way the numbers go."""
    levels = _levels(values_of(found), 255).astype(np.uint8)
    return by_value()[levels if found.kind == "disparity" else 255 - levels]


def values_of(found: DepthMap) -> NDArray[np.float32]:
    """[height, width]"""
    width, height = found.size
    return np.frombuffer(found.values, "<f4").reshape(height, width)


def _levels(values: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """0 at the least value, ``most`` at the greatest; 0 everywhere where the two are one."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros_like(values)
    # One copy that is changed in place: a map of 12 million values is 48 MB.
    levels = values - np.float32(low)
    levels *= np.float32(most / (high - low))
    np.rint(levels, out=levels)
    return np.clip(levels, 0, most, out=levels)


def _npz(values: NDArray[np.float32]) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, depth=values[None])
    return out.getvalue()
