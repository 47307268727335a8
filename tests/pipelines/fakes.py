"""Factories that a registry row can name, for tests of the manager: no model library, no weights."""

import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import DeviceLost, OutOfDeviceMemory
from core.spec import PipelineSpec
from pipelines.checkpoint import Found
from pipelines.options import ModelOptions, Report, Weights
from pipelines.shards import Part


class FakePipeline:
    """Holds what it was loaded with; is never run."""

    lightning_enabled = False
    precision = "as large as life"

    def __init__(self, spec: PipelineSpec, options: ModelOptions) -> None:
        self.spec, self.options = spec, options
        self.weights = Weights(nbytes(spec), "fp32")
        self.caches: Mapping[str, dict[str, int]] = {"prompts": {"hits": 0}}

    def prepare(self, requests: Sequence[Any]) -> list[Any]:
        raise NotImplementedError

    def step(self, states: Sequence[Any]) -> None:
        raise NotImplementedError

    def decode(self, states: Sequence[Any]) -> list[Any]:
        raise NotImplementedError


def find(spec: PipelineSpec, options: ModelOptions, report: Report) -> Found:
    """Files that promise just what the model will take, at 4 bytes to a weight."""
    return Found(Path("nowhere"), {"transformer": Part(nbytes(spec) // 4, nbytes(spec))})


def find_half(spec: PipelineSpec, options: ModelOptions, report: Report) -> Found:
    """Files that promise half of it."""
    return Found(Path("nowhere"), {"transformer": Part(nbytes(spec) // 8, nbytes(spec) // 2)})


def nbytes(spec: PipelineSpec) -> int:
    """What a model takes: its row's ``vram_gb``."""
    return round((spec.vram_gb or 0) * 1e9)


class Gate:
    """A load that stops half-way until it is let through."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()


GATES: dict[str, Gate] = {}  # by the row's source


def load(spec: PipelineSpec, options: ModelOptions, report: Report) -> FakePipeline:
    return FakePipeline(spec, options)


def load_lightning(spec: PipelineSpec, options: ModelOptions, report: Report) -> FakePipeline:
    pipeline = FakePipeline(spec, options)
    pipeline.lightning_enabled = True
    return pipeline


def load_when_file_exists(spec: PipelineSpec, options: ModelOptions, report: Report) -> FakePipeline:
    """Fails as a damaged checkpoint does until the row's source is a file."""
    if not Path(spec.source).is_file():
        raise OSError(f"no weights at {spec.source}")
    return FakePipeline(spec, options)


def load_too_large(spec: PipelineSpec, options: ModelOptions, report: Report) -> FakePipeline:
    raise OutOfDeviceMemory


def load_on_lost_device(spec: PipelineSpec, options: ModelOptions, report: Report) -> FakePipeline:
    raise DeviceLost


def load_through_gate(spec: PipelineSpec, options: ModelOptions, report: Report) -> FakePipeline:
    gate = GATES[spec.source]
    report.stage("transformer", 2, 3)
    report.bytes(nbytes(spec) // 4, nbytes(spec))
    gate.reached.set()
    assert gate.opened.wait(10)
    return FakePipeline(spec, options)


class Tensors:
    """Stands for gigabytes of a component that was read before the load failed."""


READ: list["weakref.ref[Tensors]"] = []


def load_half(spec: PipelineSpec, options: ModelOptions, report: Report) -> FakePipeline:
    half = Tensors()
    READ.append(weakref.ref(half))
    raise OSError("the second file is damaged")
