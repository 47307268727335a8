"""A model that paints what it was asked, so that an answer which went astray shows in its colour."""

import hashlib
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.catalog import Catalog
from core.errors import DeviceLost
from core.request import Image, InferenceRequest, Task
from core.result import InferenceResult
from core.spec import PipelineSpec
from pipelines.options import Weights

POISON = "poison"  # a prompt with which the row's step raises
NOISE = "noise"  # a prompt whose picture no format makes small
LOST = "device lost"  # a prompt that takes the device along

SPEC = PipelineSpec(
    name="painting",
    factory="__main__:load",
    source="builtin:painting",
    steps=4,
    cfg=1.0,
    output_area=64 * 64,
    reference_area=64 * 64,
    condition_area=64 * 64,
    min_side=16,
    needs_gpu=False,
)
# Makes a picture of a text alone as well.
IMAGINING = replace(
    SPEC,
    name="imagining",
    source="builtin:imagining",
    tasks=frozenset({Task.GENERATE, Task.EDIT}),
    strength=0.5,
    masks=True,
)
CATALOG = Catalog([SPEC, IMAGINING], default=SPEC.name)


def colour(prompt: str, seed: int, steps: int) -> tuple[int, int, int]:
    red, green, blue = hashlib.sha256(f"{prompt}|{seed}|{steps}".encode()).digest()[:3]
    return red, green, blue


def painted(request: InferenceRequest) -> InferenceResult:
    width, height = request.canvas
    if request.prompt == NOISE:
        pixels = random.Random(request.seed).randbytes(3 * width * height)
    else:
        pixels = bytes(colour(request.prompt, request.seed, request.steps)) * (width * height)
    return InferenceResult(
        id=request.id,
        output=Image(pixels=pixels, width=width, height=height),
        model=request.model,
        seed=request.seed,
        steps=request.steps,
    )


@dataclass
class Row:
    request: InferenceRequest
    done: int = 0

    @property
    def remaining(self) -> int:
        return self.request.steps_run - self.done

    @property
    def finished(self) -> bool:
        return self.remaining == 0


class PaintingPipeline:
    """step_seconds: what a forward takes, whatever the number of rows.
    lost:         the prompt that takes the device along.

    ``forwards`` keeps when each one ended, and its rows.
    """

    def __init__(self, step_seconds: float, lost: str = LOST) -> None:
        self.lightning_enabled = False
        self.precision = "none, it paints"
        self.weights = Weights()
        self.caches: dict[str, dict[str, int]] = {}
        self.forwards: list[tuple[float, int]] = []
        self._step_seconds = step_seconds
        self._lost = lost
        self._released = threading.Event()

    def release(self) -> None:
        """Steps take no time any more."""
        self._released.set()

    def prepare(self, requests: Sequence[InferenceRequest]) -> list[Row]:
        return [Row(request) for request in requests]

    def step(self, states: Sequence[Row]) -> None:
        prompts = {state.request.prompt for state in states}
        if self._lost in prompts:
            raise DeviceLost
        if POISON in prompts:
            raise ValueError("poison")
        self._released.wait(self._step_seconds)
        self.forwards.append((time.monotonic(), len(states)))
        for state in states:
            state.done += 1

    def decode(self, states: Sequence[Row]) -> list[InferenceResult]:
        return [painted(state.request) for state in states]
