"""Loads and evicts a model over and over, one edit in between, and watches this process's memory.

``python -m benchmarks.memory [ROUNDS] [MODEL…]`` prints a line a model and exits 1 when memory stays more
than 64 MB above where it was after the first round: by then every library is in memory.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from core.catalog import Catalog
from core.request import Image, InferenceRequest, Task
from core.spec import PipelineSpec
from pipelines.checkpoint import Found, find
from pipelines.manager import ModelManager
from pipelines.options import ModelOptions, Report
from tests.pipelines import fakes, looks
from tests.pipelines.rows import BUILT_IN

ROUNDS, LIMIT = 50, 64e6
SIDE = 64


def main() -> int:
    arguments = sys.argv[1:]
    rounds = int(arguments[0]) if arguments else ROUNDS
    names = arguments[1:] or [spec.name for spec in BUILT_IN]
    missed = False
    print(f"{'':14}{'rounds':>8}{'before':>10}{'after':>10}{'growth':>10}{'highest':>10}{'s/round':>9}")
    for spec in BUILT_IN:
        if spec.name in names:
            missed |= show(spec, rounds)
    return 1 if missed else 0


def show(spec: PipelineSpec, rounds: int) -> bool:
    """Print a line; whether the limit is exceeded."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        sizes = residence(spec, rounds, ModelOptions(cache_dir=Path(folder)))
        seconds = (time.perf_counter() - started) / rounds
    before, after = sizes[0], sizes[-1]
    over = after - before > LIMIT
    columns = (before, after, after - before, max(sizes))
    cells = "".join(f"{nbytes / 1e6:7.0f} MB" for nbytes in columns)
    print(f"{spec.name:14}{rounds:8}{cells}{seconds:9.2f}{' MISSED' if over else ''}", flush=True)
    return over


def residence(spec: PipelineSpec, rounds: int, options: ModelOptions) -> list[int]:
    """Bytes of this process in memory after each round, the model evicted."""
    light = replace(spec, name="light", source="builtin:light", factory="tests.pipelines.fakes:load")

    def find_either(row: PipelineSpec, options: ModelOptions, report: Report) -> Found:
        return (fakes.find if row.name == "light" else find)(row, options, report)

    models = ModelManager(Catalog([spec, light], spec.name), options, find=find_either)
    sizes = []
    for _ in range(rounds):
        use(models, spec)
        models.acquire("light")
        sizes.append(resident())
    return sizes


def use(models: ModelManager, spec: PipelineSpec) -> None:
    """One small picture of every task, or one look at one."""
    pipeline = models.acquire(spec.name)
    for request in [looks.look(spec.name)] if spec.vision else paintings(spec):
        states = pipeline.prepare([request])
        while not states[0].finished:
            pipeline.step(states)
        pipeline.decode(states)


def paintings(spec: PipelineSpec) -> Iterator[InferenceRequest]:
    grey = Image(pixels=b"\x80" * (3 * SIDE * SIDE), width=SIDE, height=SIDE)
    for task in sorted(spec.tasks):
        given = (grey,) if task is Task.EDIT else ()
        yield spec.request(
            id="round", task=task, prompt="a boat", images=given, width=SIDE, height=SIDE, steps=2, seed=0
        )


def resident(figure: str = "VmRSS") -> int:
    """Bytes of this process in memory now; ``VmHWM`` is the most there ever were."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{figure}:"))


if __name__ == "__main__":
    sys.exit(main())
