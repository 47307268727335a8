"""A mask in each of the forms in which clients read one, made from its run lengths, one mask at a time."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import orjson
import pybase64
from numpy.typing import NDArray

from api.png import png
from api.polygons import outlines, simplified
from core.vision import Mask

_TOLERANCE: Final = 1.5  # pixels by which a polygon may leave the outline


def dense_of(mask: Mask) -> NDArray[np.uint8]:
    """[height, width] of 0 and 1, a view of columns."""
    runs = np.frombuffer(mask.runs, "<u4")
    width, height = mask.size
    ones = (np.arange(len(runs), dtype=np.uint32) & 1).astype(np.uint8)
    return np.repeat(ones, runs).reshape(width, height).T


def rle(mask: Mask) -> dict[str, Any]:
    """The service's own: little-endian uint32 run lengths, column by column, zeros first, deflated."""
    width, height = mask.size
    counts = pybase64.b64encode(zlib.compress(mask.runs, 6)).decode()
    return {"encoding": "rle", "size": [height, width], "counts": counts}


def coco_rle(mask: Mask) -> dict[str, Any]:
    """As pycocotools writes it. Source: ``rleToString`` of cocodataset/cocoapi, common/maskApi.c.

    Each count, from the fourth on its difference to the one before the last, as groups of five bits, the
    lowest first, sign-extended, each group a character from ``0`` on with 32 for "more follows".
    """
    width, height = mask.size
    counts = np.frombuffer(mask.runs, "<u4").astype(np.int64)
    numbers = counts.copy()
    numbers[3:] -= counts[1:-2]
    letters = np.zeros((len(numbers), 13), np.uint8)
    lengths = np.zeros(len(numbers), np.int64)
    rest, going = numbers, np.ones(len(numbers), np.bool_)
    for place in range(letters.shape[1]):
        group = rest & 31
        rest = rest >> 5
        more = np.where(group & 16 != 0, rest != -1, rest != 0)
        letters[going, place] = (group + np.where(more, 32, 0) + 48)[going]
        lengths[going] += 1
        going &= more
        if not going.any():
            break
    written = letters[np.arange(letters.shape[1]) < lengths[:, None]]
    return {"size": [height, width], "counts": written.tobytes().decode("ascii")}


def as_png(mask: Mask) -> str:
    """base64 of a grey PNG: 255 inside, 0 outside."""
    file = png((dense_of(mask) * np.uint8(255)).tobytes(), mask.size, "grey")
    text: str = pybase64.b64encode(file).decode()
    return text


def as_lists(mask: Mask) -> orjson.Fragment:
    """Rows of 0 and 1, as JSON."""
    return orjson.Fragment(_json_rows(dense_of(mask)))


def polygons(mask: Mask) -> tuple[list[list[list[float]]], list[list[list[float]]]]:
    """Outer outlines and holes, each a list of [x, y]; specks that are no polygon at this tolerance go.

    Raises ``RequestError`` for a mask with too ragged an edge.
    """
    outer: list[list[list[float]]] = []
    holes: list[list[list[float]]] = []
    for line in outlines(dense_of(mask)):
        fewer = simplified(line.points, _TOLERANCE)
        if len(fewer) >= 3:
            (holes if line.hole else outer).append(fewer.astype(float).tolist())
    return outer, holes


def dense_bytes(mask: Mask) -> int:
    """Of ``as_lists``, without making it."""
    width, height = mask.size
    return (2 * width + 2) * height + 1


def _json_rows(values: NDArray[np.uint8]) -> bytes:
    """``[[0,1],[1,0]]`` laid out as an array of letters, since a writer of lists takes seconds for it."""
    height, width = values.shape
    text = np.full((height, 2 * width + 2), ord(","), np.uint8)
    text[:, 0] = ord("[")
    text[:, 1:-1:2] = values + np.uint8(ord("0"))
    text[:, -2] = ord("]")
    text[-1, -1] = ord("]")
    return b"[" + text.tobytes()


FORMS: Final[Mapping[str, tuple[str, Callable[[Mask], Any]]]] = {
    "rle": ("masks_rle", rle),
    "coco_rle": ("masks_coco_rle", coco_rle),
    "png": ("masks_png", as_png),
    "dense": ("masks", as_lists),
}
