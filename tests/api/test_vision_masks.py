"""Every form of a mask, read back by who reads it in the field, is the mask it was made of."""

import base64
import io
import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw
from pycocotools import mask as pycocotools

from api.vision_masks import as_lists, as_png, coco_rle, dense_bytes, dense_of, polygons, rle
from tests.api.findings import mask_of

ROOT = Path(__file__).resolve().parents[2]
Pixels = NDArray[np.bool_]


def noise(width: int, height: int, share: float) -> Pixels:
    return np.random.default_rng(width * height).random((height, width)) < share


def disc(width: int, height: int) -> Pixels:
    rows, columns = np.mgrid[:height, :width]
    away = np.hypot(columns - width / 2, rows - height / 2)
    ring: Pixels = (away < height / 2.2) & (away > height / 6)
    return ring


MASKS: dict[str, Pixels] = {
    "one pixel": np.ones((1, 1), np.bool_),
    "no pixel": np.zeros((5, 7), np.bool_),
    "all": np.ones((7, 5), np.bool_),
    "a ring": disc(90, 60),
    "noise": noise(31, 17, 0.5),
    "a row": noise(40, 1, 0.5),
    "a column": noise(1, 40, 0.5),
    "long runs": np.repeat(np.eye(2, dtype=np.bool_), 700, axis=0).repeat(900, axis=1),
}


def read_rle(told: Any) -> Pixels:
    """As the service's clients do: run lengths column by column, the first of zeros."""
    assert told["encoding"] == "rle"
    height, width = told["size"]
    counts = np.frombuffer(zlib.decompress(base64.b64decode(told["counts"])), "<u4")
    values = np.arange(len(counts)) % 2 == 1
    found: Pixels = np.repeat(values, counts).reshape((height, width), order="F")
    return found


def read_coco(told: Any) -> Pixels:
    found: Pixels = np.asarray(pycocotools.decode(told), np.bool_)
    return found


def read_png(told: Any) -> Pixels:
    picture = Pillow.open(io.BytesIO(base64.b64decode(told)))
    assert picture.mode == "L"
    values = np.asarray(picture)
    assert set(np.unique(values)) <= {0, 255}
    inside: Pixels = values == 255
    return inside


def read_lists(told: Any) -> Pixels:
    found: Pixels = np.array(json.loads(orjson.dumps(told)), np.bool_)
    return found


FORMS: list[tuple[Callable[[Any], Any], Callable[[Any], Pixels]]] = [
    (rle, read_rle),
    (coco_rle, read_coco),
    (as_png, read_png),
    (as_lists, read_lists),
    (dense_of, lambda told: np.asarray(told, np.bool_)),
]


# Of pycocotools' own arrays, which are older than numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("write", "read"), FORMS, ids=[write.__name__ for write, _ in FORMS])
def test_what_is_read_is_what_was_written(
    name: str, write: Callable[[Any], Any], read: Callable[[Any], Pixels]
) -> None:
    """By decoders that are not ours, where there are any."""
    inside = MASKS[name]
    assert np.array_equal(read(write(mask_of(inside))), inside)


@pytest.mark.parametrize("name", MASKS)
def test_coco_strings_are_those_of_pycocotools(name: str) -> None:
    """To the letter: some compare them, or hash them."""
    inside = MASKS[name]
    official = pycocotools.encode(np.asfortranarray(inside.astype(np.uint8)))
    assert coco_rle(mask_of(inside)) == {
        "size": list(official["size"]),
        "counts": official["counts"].decode(),
    }


def test_coco_strings_of_many_random_masks() -> None:
    """Differences of both signs and of every length."""
    random = np.random.default_rng(5)
    for _ in range(200):
        width, height = (int(side) for side in random.integers(1, 400, 2))
        inside = np.repeat(random.random(width * height // 7 + 1) < random.random(), 7)[: width * height]
        pixels = np.resize(inside, (width, height)).T
        official = pycocotools.encode(np.asfortranarray(pixels.astype(np.uint8)))
        assert coco_rle(mask_of(pixels))["counts"] == official["counts"].decode()


def test_the_length_of_lists_is_known_before_they_are_made() -> None:
    """It is what keeps an answer under its limit."""
    for inside in MASKS.values():
        mask = mask_of(inside)
        assert len(orjson.dumps(as_lists(mask))) == dense_bytes(mask)


def test_polygons_keep_holes_apart() -> None:
    """A client that fills every polygon of a mask must not fill its holes."""
    outer, holes = polygons(mask_of(disc(300, 200)))
    assert (len(outer), len(holes)) == (1, 1)
    ring = disc(300, 200)
    drawn = Pillow.new("1", (300, 200))
    pen = ImageDraw.Draw(drawn)
    pen.polygon([tuple(point) for point in outer[0]], fill=1)
    pen.polygon([tuple(point) for point in holes[0]], fill=0)
    wrong = np.asarray(drawn) != ring
    assert wrong.mean() < 0.02  # 1.5 pixels along two edges
    assert len(outer[0]) < 60, "and they are few points"


def test_sixty_instances_of_a_large_picture_take_little_memory() -> None:
    """Of 12 million pixels each, encoded one after another: in a process of its own, to see its peak."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.api.mask_memory"], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    growth = json.loads(done.stdout)
    assert set(growth) == {"rle", "coco_rle", "png", "polygons", "render"}
    assert max(growth.values()) < 200, growth
    assert max(growth.values()) > 5, "the measure must be able to see something"
