"""What a denoising step costs a row in batches of 1, 2, 4 and 8, for every model that runs here.

``python -m benchmarks.step_batching`` prints a table and exits 1 when a target is missed. Every batch size
takes one step in turn, so that a slow moment of the host meets them all; figures are medians over the
rounds. A row is unguided and no step is cached; what is timed is ``step`` alone.
"""

import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.pipeline import Pipeline
from core.request import Image, InferenceRequest, Task
from core.spec import PipelineSpec
from pipelines.manager import ModelManager
from pipelines.options import ModelOptions
from pipelines.registry import catalog
from tests.pipelines.rows import PAINTERS_HERE

BATCHES = (1, 2, 4, 8)
SIDES = (128, 256)
ROUNDS = 15
TARGET = 1.1  # of a row's time alone: where a batch gains nothing, it must cost nothing either


@dataclass(frozen=True)
class Line:
    """seconds: a step of one row alone. shares: time per row in each of ``BATCHES``, of that alone."""

    seconds: float
    shares: Sequence[float]

    @property
    def missed(self) -> bool:
        return max(self.shares) > TARGET

    def __str__(self) -> str:
        shares = "".join(f"{share:8.2f}" for share in self.shares)
        return f"{self.seconds * 1e3:8.1f}ms{shares}{' MISSED' if self.missed else ''}"


def main() -> int:
    torch.set_num_threads(1)
    print(
        f"fp32, 1 thread of {platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"{ROUNDS} rounds of one step each, medians\n"
        f"time per row, of its time alone; target: at most {TARGET:g}\n\n"
        f"{'':34}{'tokens':>8}{'alone':>10}" + "".join(f"{f'of {rows}':>8}" for rows in BATCHES)
    )
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        options = ModelOptions(cache_dir=Path(folder), condition_cache_bytes=0)
        for row in PAINTERS_HERE:
            rows = catalog(row.name)
            spec, pipeline = rows.default, ModelManager(rows, options).acquire(row.name)
            for side in SIDES:
                if not spec.min_side <= side <= spec.max_side:
                    continue
                line = measure(pipeline, spec, side)
                tokens = requests(spec, side, 1)[0].tokens
                print(f"{f'{spec.name}, {side}x{side}':34}{tokens:8}{line}", flush=True)
                missed |= line.missed
    return 1 if missed else 0


def requests(spec: PipelineSpec, side: int, count: int, steps: int = ROUNDS + 1) -> list[InferenceRequest]:
    """``count`` rows that may share a forward: of a text where the model can do that, else with a picture."""
    edits = Task.GENERATE not in spec.tasks
    return [
        spec.request(
            id=f"{count}/{number}",
            task=Task.EDIT if edits else Task.GENERATE,
            prompt=f"turn the season to winter, version {number}",
            images=(noise(number, side),) if edits else (),
            width=side,
            height=side,
            steps=steps,
            cfg=1.0,
            seed=number,
        )
        for number in range(count)
    ]


def noise(seed: int, side: int) -> Image:
    return Image(pixels=random.Random(seed).randbytes(3 * side * side), width=side, height=side)


def measure(pipeline: Pipeline[Any], spec: PipelineSpec, side: int, rounds: int = ROUNDS) -> Line:
    batches = [pipeline.prepare(requests(spec, side, count, rounds + 1)) for count in BATCHES]
    for states in batches:  # the first one also pays for what is made once
        pipeline.step(states)
    taken = [[timed_step(pipeline, states) for states in batches] for _ in range(rounds)]
    alone = [times[0] for times in taken]
    shares = [
        statistics.median(times[at] / rows / times[0] for times in taken) for at, rows in enumerate(BATCHES)
    ]
    return Line(statistics.median(alone), shares)


def timed_step(pipeline: Pipeline[Any], states: list[Any]) -> float:
    start = time.perf_counter()
    pipeline.step(states)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
