"""Outlines enclose exactly the pixels they are of, and fewer points keep to them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from api.polygons import MAX_CORNERS, Points, outlines, simplified
from core.errors import RequestError

MASKS = arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1))


def filled(lines: list[Points], height: int, width: int) -> NDArray[np.uint8]:
    """What lies inside of an odd number of the lines; each is of level and upright pieces."""
    crossings = np.zeros((height, width + 1), np.int64)
    for line in lines:
        for (x, y), (other_x, other_y) in zip(line, np.roll(line, -1, axis=0), strict=True):
            assert (x == other_x) != (y == other_y)
            if x == other_x:
                crossings[min(y, other_y) : max(y, other_y), x] += 1
    return (np.cumsum(crossings, axis=1)[:, :width] % 2).astype(np.uint8)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(mask=MASKS)
def test_filling_the_lines_gives_the_mask(mask: NDArray[np.uint8]) -> None:
    """Whatever touches whatever at a corner, and however holes lie in islands in holes."""
    lines = [line.points for line in outlines(mask)]
    assert np.array_equal(filled(lines, *mask.shape), mask)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(mask=MASKS)
def test_outer_lines_are_as_many_as_islands(mask: NDArray[np.uint8]) -> None:
    """Islands that touch at a corner are one; holes are what the ground, joined at edges, encloses."""
    lines = list(outlines(mask))
    ground = np.pad(1 - mask, 1, constant_values=1)
    assert sum(not line.hole for line in lines) == islands(mask, corners=True)
    assert sum(line.hole for line in lines) == islands(ground, corners=False) - 1


def islands(mask: NDArray[np.uint8], *, corners: bool) -> int:
    left = {(int(row), int(column)) for row, column in zip(*np.nonzero(mask), strict=True)}
    count = 0
    while left:
        count += 1
        pending = [left.pop()]
        while pending:
            row, column = pending.pop()
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    beside = (row + down, column + right)
                    if beside in left and (corners or 0 in (down, right)):
                        left.remove(beside)
                        pending.append(beside)
    return count


def test_a_staircase_becomes_a_line() -> None:
    """Which is what the tolerance is for."""
    steps = np.array([[at // 2 + at % 2, at // 2] for at in range(40)] + [[0, 19]])
    assert len(simplified(steps, 1.5)) == 3


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(mask=MASKS)
def test_no_point_is_left_farther_than_the_tolerance(mask: NDArray[np.uint8]) -> None:
    """Each that was left out is near one of the pieces that are left."""
    for line in outlines(mask):
        fewer = simplified(line.points, 1.5).astype(float)
        ends = np.roll(fewer, -1, axis=0)
        for point in line.points:
            gaps = [gap(point, *piece) for piece in zip(fewer, ends, strict=True)]
            assert min(gaps) <= 1.5 + 1e-9


def gap(point: Points, start: NDArray[np.float64], end: NDArray[np.float64]) -> float:
    along = end - start
    share = float(np.clip((point - start) @ along / max(float(along @ along), 1e-12), 0, 1))
    return float(np.hypot(*(point - start - share * along)))


def test_a_mask_of_sand_is_refused_by_its_number_of_corners() -> None:
    """It would take minutes; the sentence says what to ask for instead."""
    sand = np.indices((800, 800)).sum(axis=0).astype(np.uint8) % 2
    with pytest.raises(RequestError, match=f"over the limit of {MAX_CORNERS} for polygons; ask for output"):
        list(outlines(sand))
