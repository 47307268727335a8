"""Times of the full-size vision models on a GPU, alone and in batches, in bf16 and fp32 products.

``python -m benchmarks.gpu_vision`` draws random weights of the real sizes on the card, one model after
another, and prints a line for each batch as it is measured. Without a GPU it runs the pocket checkpoints.
Every row of a batch shows another picture; caches are off. What fails is a line too.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.gpu import GIB, fresh_memory, told
from benchmarks.random_vision import FAMILIES, drawn, pocket
from core.request import InferenceRequest
from core.spec import PipelineSpec
from core.vision import PLAINEST
from pipelines.device import finish, pick_device
from pipelines.options import ModelOptions, Precision
from tests.pipelines.edits import picture

PRECISIONS = {"bf16": Precision(), "fp32": Precision(mode="fp32")}
REPEATS = 5
SIZE = (1280, 960)  # of a caller's picture


@dataclass(frozen=True)
class Times:
    """Seconds of a batch: reading its pictures, the forward, telling what was found."""

    rows: int
    prepare: float
    step: float
    decode: float

    def __str__(self) -> str:
        whole = self.prepare + self.step + self.decode
        each = "".join(f"{seconds:9.4f}" for seconds in (self.prepare, self.step, self.decode))
        return f"{each}{self.rows / self.step:11.1f}{self.rows / whole:11.1f}"


def main() -> int:
    return benchmark(arguments())


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument(
        "--budget", type=float, default=900.0, help="seconds after which nothing new is begun"
    )
    return parser.parse_args(words)


def benchmark(asked: argparse.Namespace) -> int:
    """0 however many cells fail: there is no target to miss."""
    started = time.monotonic()
    device = pick_device()
    announce(device)
    with tempfile.TemporaryDirectory() as folder:
        options = ModelOptions(cache_dir=Path(folder), condition_cache_bytes=0)
        for name, label in itertools.product(asked.families, asked.precisions):
            if time.monotonic() - started > asked.budget:
                print(f"{name:16}{label:6} not run: the budget of {asked.budget:.0f} s is spent")
                continue
            chosen = replace(options, precision=PRECISIONS[label])
            with told(f"{name:16}{label:6}"), fresh_memory():
                measure(name, label, chosen, device, asked.batches)
    return 0


def announce(device: torch.device) -> None:
    where = "no GPU here: the pocket checkpoints"
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        where = f"{card.name}, {card.total_memory / GIB:.0f} GiB, sm{card.major}{card.minor}, full size"
    print(
        f"{where}; torch {torch.__version__}, {date.today()}; random weights, seconds of a batch\n"
        f"pictures of {SIZE[0]}x{SIZE[1]}, the plainest question of each; the median of {REPEATS}\n"
        f"{'':22}{'batch':>6}{'prepare':>9}{'step':>9}{'decode':>9}{'steps: /s':>11}{'whole: /s':>11}"
        f"{'peak GiB':>10}"
    )


def measure(name: str, label: str, options: ModelOptions, device: torch.device, batches: list[int]) -> None:
    family, full = FAMILIES[name], device.type == "cuda"
    spec, pipeline = drawn(family, options, device) if full else pocket(family, options)
    print(f"{name:16}{label:6} {pipeline.precision}", flush=True)
    for rows in batches:
        with told(f"{name:16}{label:6}{rows:6}"):
            if full:
                torch.cuda.reset_peak_memory_stats(device)
            times = batch_times(pipeline, spec, rows, device)
            peak = f"{torch.cuda.max_memory_allocated(device) / GIB:10.1f}" if full else f"{'-':>10}"
            print(f"{name:16}{label:6}{rows:6}{times}{peak}", flush=True)


def batch_times(pipeline: Any, spec: PipelineSpec, rows: int, device: torch.device) -> Times:
    """The first time, which tunes and allocates, is left out."""
    laps = []
    for turn in range(REPEATS + 1):
        requests = looks(spec, turn * rows, rows)
        finish(device)
        marks = [time.perf_counter()]
        states = pipeline.prepare(requests)
        finish(device)
        marks.append(time.perf_counter())
        pipeline.step(states)
        finish(device)
        marks.append(time.perf_counter())
        pipeline.decode(states)
        marks.append(time.perf_counter())
        laps.append([after - before for before, after in itertools.pairwise(marks)])
    prepare, step, decode = (median(times) for times in zip(*laps[1:], strict=True))
    return Times(rows, prepare, step, decode)


def looks(spec: PipelineSpec, first: int, rows: int) -> list[InferenceRequest]:
    (task,) = spec.tasks
    numbers = range(first, first + rows)
    return [spec.look(id=str(n), image=picture(n, *SIZE), ask=PLAINEST[task]) for n in numbers]


if __name__ == "__main__":
    sys.exit(main())
