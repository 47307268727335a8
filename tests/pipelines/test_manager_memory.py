"""The memory that models may take together, and that a model in use never pays for another one."""

import random
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batching.mux import BatchMux, BatchPolicy
from core.catalog import Catalog
from core.errors import CapacityError
from core.request import Image, InferenceRequest, Task
from core.result import InferenceResult
from core.spec import PipelineSpec
from pipelines.manager import Find, ModelManager
from pipelines.options import ModelOptions, Report
from tests.pipelines import fakes
from tests.pipelines.rows import BUILT_IN
from tests.pipelines.test_manager import Clock

ROW = PipelineSpec(name="one", factory="tests.pipelines.fakes:load", source="1", needs_gpu=False, vram_gb=10)
TWO = replace(ROW, name="two", source="2")
THREE = replace(ROW, name="three", source="3")
LARGE = replace(ROW, name="large", source="4", vram_gb=40)
GB = 10**9


def manager(
    *specs: PipelineSpec,
    memory: int | None = None,
    device: int = 10**12,
    most: int = 9,
    find: Find = fakes.find,
    clock: Clock | None = None,
) -> ModelManager:
    return ModelManager(
        Catalog(specs, specs[0].name),
        ModelOptions(max_models=most, memory_bytes=memory),
        clock=clock or Clock(),
        has_gpu=lambda: False,
        device_bytes=lambda: device,
        find=find,
    )


def loaded(models: ModelManager) -> list[str]:
    return [model.name for model in models.status().models]


def test_models_stay_while_their_bytes_fit() -> None:
    """Three of 10 GB into 25: the least recently used leaves, though nine may stay by count."""
    models = manager(ROW, TWO, THREE, memory=25 * GB)
    for name in ("one", "two", "one", "three"):
        models.acquire(name)
    assert loaded(models) == ["one", "three"]


def test_a_model_that_cannot_fit_is_refused_before_anything_leaves() -> None:
    """And before its files are read for minutes: the headers say enough."""
    models = manager(ROW, TWO, LARGE, memory=25 * GB)
    one, two = models.acquire("one"), models.acquire("two")
    with pytest.raises(CapacityError, match=r"large needs about 37\.3 GiB and GPU_MAX_GIB allows 23\.3 GiB"):
        models.acquire("large")
    assert (models.acquire("one"), models.acquire("two")) == (one, two)
    assert models.status().state == "ready"


def test_without_a_limit_the_device_is_the_limit() -> None:
    """A limit above what the device has is none."""
    for memory in (None, 50 * GB):
        with pytest.raises(CapacityError, match="this device has"):
            manager(LARGE, memory=memory, device=30 * GB).acquire("large")


def test_what_counts_is_what_was_measured() -> None:
    """Headers promise 5 GB, the loaded model takes 10: another one has to leave after all."""
    models = manager(ROW, TWO, memory=16 * GB, find=fakes.find_half)
    models.acquire("one")
    models.acquire("two")
    assert loaded(models) == ["two"]


def test_a_model_found_too_large_is_known_for_it_the_next_time() -> None:
    """The second try must cost neither a load nor a model that is in memory."""
    clock = Clock()
    models = manager(ROW, LARGE, memory=30 * GB, find=fakes.find_half, clock=clock)
    with pytest.raises(CapacityError, match=r"large needs about 37\.3 GiB"):
        models.acquire("large")
    one = models.acquire("one")
    clock.now += 3600
    with pytest.raises(CapacityError, match=r"large needs about 37\.3 GiB"):
        models.acquire("large")
    assert models.acquire("one") is one


def test_health_shows_what_is_in_memory() -> None:
    """Bytes and precision as measured, the least recently used first."""
    models = manager(ROW, TWO)
    models.acquire("one").caches["prompts"]["bytes"] = 5
    models.acquire("two")
    assert [(m.name, m.bytes, m.precision) for m in models.status().models] == [
        ("one", 10 * GB + 5, "fp32"),
        ("two", 10 * GB, "fp32"),
    ]


class Evicted(Exception):
    """A model was used after it had left."""


class Fragile(fakes.FakePipeline):
    """Works only while it is one of the loaded models."""

    def __init__(self, spec: PipelineSpec, options: ModelOptions, models: ModelManager) -> None:
        super().__init__(spec, options)
        self._models = models

    def prepare(self, requests: Sequence[InferenceRequest]) -> list[Any]:
        self._require_loaded()
        return [Row(request) for request in requests]

    def step(self, states: Sequence[Any]) -> None:
        self._require_loaded()
        for state in states:
            state.done += 1

    def decode(self, states: Sequence[Any]) -> list[InferenceResult]:
        self._require_loaded()
        return [state.painted() for state in states]

    def _require_loaded(self) -> None:
        if self.spec.name not in [model.name for model in self._models.status().models]:
            raise Evicted


class Row:
    def __init__(self, request: InferenceRequest) -> None:
        self.request, self.done = request, 0

    @property
    def remaining(self) -> int:
        return self.request.steps - self.done

    @property
    def finished(self) -> bool:
        return self.remaining == 0

    def painted(self) -> InferenceResult:
        width, height = self.request.canvas
        picture = Image(pixels=bytes(3 * width * height), width=width, height=height, digest="black")
        return InferenceResult(
            id=self.request.id,
            output=picture,
            model=self.request.model,
            seed=self.request.seed,
            steps=self.request.steps,
        )


LOADS: list[str] = []
MODELS: dict[str, ModelManager] = {}


def load_fragile(spec: PipelineSpec, options: ModelOptions, report: Report) -> Fragile:
    LOADS.append(spec.name)
    return Fragile(spec, options, MODELS["now"])


def request(spec: PipelineSpec, number: int, steps: int, side: int = 64) -> InferenceRequest:
    grey = Image(pixels=bytes(3 * 64 * 64), width=64, height=64, digest="grey")
    return spec.request(
        id=str(number), task=Task.EDIT, prompt="x", images=(grey,), width=side, height=side, steps=steps
    )


@pytest.mark.parametrize("join", ["step", "batch"])
def test_a_model_with_rows_in_memory_is_never_evicted(join: Any) -> None:
    """Three models take turns in room for one; rows of several sizes rest while others of theirs run."""
    factory = f"{__name__}:load_fragile"
    rows = [replace(row, factory=factory) for row in (ROW, TWO, THREE)]
    models = MODELS["now"] = manager(*rows, most=1)
    draw = random.Random(1)
    with BatchMux(models.acquire, BatchPolicy(join=join, max_wait=0.001)) as mux:
        futures = [
            mux.submit(
                request(draw.choice(rows), number, steps=draw.randint(1, 5), side=draw.choice((64, 128)))
            )
            for number in range(20)
        ]
        for future in draw.sample(futures, 4):
            future.cancel()
        done, waiting = wait(futures, timeout=60)
        assert not waiting
        failures = [future.exception() for future in done if not future.cancelled() and future.exception()]
    assert failures == []
    assert {"one", "two", "three"} <= set(LOADS)


def test_the_eviction_of_a_model_in_use_would_be_seen() -> None:
    """The test above must be able to fail: here a manager evicts between two steps."""
    row, other = (replace(row, factory=f"{__name__}:load_fragile") for row in (ROW, TWO))
    models = MODELS["now"] = manager(row, other, most=1)
    pipeline = models.acquire("one")
    states = pipeline.prepare([request(row, 0, steps=2)])
    pipeline.step(states)
    models.acquire("two")
    with pytest.raises(Evicted):
        pipeline.step(states)


def test_many_callers_of_one_unloaded_model_cause_one_load() -> None:
    """They all wait for it, and all are answered."""
    LOADS.clear()
    row = replace(ROW, factory=f"{__name__}:load_fragile")
    models = MODELS["now"] = manager(row)
    with BatchMux(models.acquire, BatchPolicy()) as mux:
        futures = [mux.submit(request(row, number, steps=1)) for number in range(32)]
        assert len({future.result(30).id for future in futures}) == 32
    assert LOADS == ["one"]


def test_many_callers_of_a_model_that_does_not_load_are_all_told_at_once() -> None:
    """One try for all of them, and the next only after the back-off."""
    row = replace(ROW, factory="tests.pipelines.fakes:load_half")
    fakes.READ.clear()
    models = manager(row)
    with BatchMux(models.acquire, BatchPolicy()) as mux:
        futures = [mux.submit(request(row, number, steps=1)) for number in range(32)]
        codes = {getattr(future.exception(30), "code", None) for future in futures}
    assert codes == {"not_ready"}
    assert len(fakes.READ) == 1


@pytest.mark.parametrize("model", [spec.name for spec in BUILT_IN])
def test_memory_goes_back_when_a_model_leaves(model: str) -> None:
    """Loaded, used and evicted again and again; the benchmark does it fifty times."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "5", model],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert model in done.stdout
