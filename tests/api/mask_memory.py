"""Prints by how many MiB the process grew at most while sixty masks of 12 million pixels were written."""

import json
import threading
from pathlib import Path

import numpy as np

from api.codec import Term
from api.vision_answers import Written
from api.vision_drawing import drawing
from core.request import Image
from core.result import InferenceResult
from core.vision import Instance, Segment, Segmentation, SegmentPrompt
from tests.api.findings import CUTTER, mask_of

SIZE = (4000, 3000)
INSTANCES = 60
SHAPES = 4


class Peak:
    """The largest resident size since it began, by asking every few milliseconds."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self.start = self.most = _resident()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()

    def _look(self) -> None:
        while not self._over.wait(0.002):
            self.most = max(self.most, _resident())

    def growth(self) -> float:
        self._over.set()
        self._watch.join()
        return (self.most - self.start) / 2**20


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def instances() -> tuple[Instance, ...]:
    width, height = SIZE
    rows, columns = np.mgrid[:height, :width].astype(np.int16)
    found = []
    for at in range(SHAPES):
        x, y = 900 + 600 * at, 900 + 300 * at
        inside = (abs(columns - x) + abs(rows - y) < 900) & (abs(columns - x) + abs(rows - y) > 200)
        found.append(Instance(box=(0.0, 0.0, 10.0, 10.0), score=0.9, mask=mask_of(inside)))
    return tuple(found) * (INSTANCES // SHAPES)


def main() -> None:
    found = instances()
    grown = {}
    small = Written("rle", 2**30, Term())
    small.instances(found[:1])
    for form in ("rle", "coco_rle", "png", "polygons"):
        peak = Peak()
        Written(form, 2**30, Term()).instances(found[:20] if form == "polygons" else found)  # the slow one
        grown[form] = peak.growth()
    picture = Image(pixels=bytes(SIZE[0] * SIZE[1] * 3), width=SIZE[0], height=SIZE[1])
    request = CUTTER.look(id="x", image=picture, ask=Segment(prompts=(SegmentPrompt(text="a"),)))
    result = InferenceResult(
        id="x", output=Segmentation(size=SIZE, prompts=(found,)), model="cutter", seed=0, steps=1
    )
    peak = Peak()
    drawing(request, result, Term())
    grown["render"] = peak.growth()
    print(json.dumps(grown))


if __name__ == "__main__":
    main()
