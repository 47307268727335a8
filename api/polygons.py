"""Outlines of a mask: closed lines between pixels, holes told from outer ones, and fewer points of each.

Points lie on the corners of pixels, so a line encloses exactly the pixels it is of. Pixels that touch at a
corner belong together, as OpenCV's outlines have it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.errors import RequestError

Points = NDArray[np.int64]
MAX_CORNERS: Final = 400_000  # of one mask: about a second of work


@dataclass(frozen=True, slots=True)
class Outline:
    """points: [n, 2] of x and y; the last is joined to the first."""

    points: Points
    hole: bool


def outlines(mask: NDArray[np.uint8]) -> Iterator[Outline]:
    """mask: [height, width] of 0 and 1. Raises ``RequestError`` when it has over ``MAX_CORNERS`` corners.

    In a row of corners every other gap is an edge, and in a column too: joined in turns they are the lines.
    """
    rows, columns, crossing = _corners(mask)
    count = len(rows)
    if count == 0:
        return
    if count > MAX_CORNERS:
        raise RequestError(
            "invalid_parameter",
            f"a mask with {count} corners is over the limit of {MAX_CORNERS} for polygons; "
            "ask for output_format rle",
            param="output_format",
        )
    beside = np.arange(count) ^ 1  # sorted by row, then column: 0 with 1, 2 with 3
    # Where four edges meet there are two corners; which of them a vertical edge takes decides who touches.
    by_column = np.lexsort((np.arange(count) * (1 - 2 * crossing), rows, columns))
    above = np.empty(count, np.int64)
    above[by_column] = by_column[np.arange(count) ^ 1]
    points = np.stack((columns, rows), axis=1)
    across, along = beside.tolist(), above.tolist()
    seen = bytearray(count)
    for start in range(count):
        if seen[start]:
            continue
        line = []
        at = start
        while not seen[at]:
            other = across[at]
            seen[at] = seen[other] = 1
            line += [at, other]
            at = along[other]
        # The first corner of a line is its topmost, leftmost: a hole begins where the mask was before.
        row, column = int(rows[start]), int(columns[start])
        yield Outline(points[line], hole=not mask[row, column])


def _corners(mask: NDArray[np.uint8]) -> tuple[Points, Points, Points]:
    """Rows and columns of corners, sorted, twice where pixels cross; and 1 where the copies change sides."""
    padded = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.uint8)
    padded[1:-1, 1:-1] = mask
    edges = padded[1:] ^ padded[:-1]
    odd = edges[:, 1:] ^ edges[:, :-1]  # of the four pixels around a corner, one or three
    both = edges[:, 1:] & edges[:, :-1] & (padded[1:, 1:] ^ padded[1:, :-1])  # two, across from each other
    rows, columns = np.nonzero(odd | both)
    again = both[rows, columns] != 0
    times = 1 + again.astype(np.int64)
    falling = (padded[rows, columns] != 0) & again  # upper left and lower right
    return np.repeat(rows, times), np.repeat(columns, times), np.repeat(falling, times).astype(np.int64)


def simplified(points: Points, tolerance: float) -> Points:
    """Fewer of the points, none of those left out farther than ``tolerance`` from the new line.

    Source: Douglas and Peucker, 1973; a closed line is cut at its first point and the one farthest from it.
    """
    count = len(points)
    closed = np.concatenate((points, points[:1])).astype(np.float64)
    far = int(np.argmax(((closed - closed[0]) ** 2).sum(axis=1)))
    keep = np.zeros(count + 1, np.bool_)
    keep[[0, far, count]] = True
    pending = [(0, far), (far, count)]
    while pending:
        first, last = pending.pop()
        if last - first < 2:
            continue
        gaps = _distances(closed[first + 1 : last], closed[first], closed[last])
        worst = int(np.argmax(gaps))
        if gaps[worst] > tolerance:
            middle = first + 1 + worst
            keep[middle] = True
            pending += [(first, middle), (middle, last)]
    return points[keep[:-1]]


def _distances(
    points: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of each point from the piece of line between the two."""
    along = end - start
    length = float(along @ along)
    share = np.clip((points - start) @ along / length, 0, 1) if length else np.zeros(len(points))
    gaps: NDArray[np.float64] = np.sqrt(((points - start - share[:, None] * along) ** 2).sum(axis=1))
    return gaps
