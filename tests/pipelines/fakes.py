"""Factories that a registry row can name, for tests of the manager: no model library, no weights."""

import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import DeviceLost, OutOfDeviceMemory
from core.spec import PipelineSpec
from pipelines.options import ModelOptions, Report


class FakePipeline:
    """Holds what it was loaded with; is never run."""

    lightning_enabled = False
    precision = "as large as life"

    def __init__(self, spec: PipelineSpec, options: ModelOptions) -> None:
        self.spec, self.options = spec, options
        self.caches: Mapping[str, dict[str, int]] = {"prompts": {"hits": 0}}

    def prepare(self, requests: Sequence[Any]) -> list[Any]:
        raise NotImplementedError

    def step(self, states: Sequence[Any]) -> None:
        raise NotImplementedError

    def decode(self, states: Sequence[Any]) -> list[Any]:
        raise NotImplementedError


class Gate:
    """A load that stops half-way until it is let through."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()


GATES: dict[str, Gate] = {}  # by the row's source


def load(spec: PipelineSpec, options: ModelOptions, report: Report) -> FakePipeline:
    return FakePipeline(spec, options)


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
    gate.reached.set()
    assert gate.opened.wait(10)
    return FakePipeline(spec, options)


class Weights:
    """Stands for gigabytes of a component that was read before the load failed."""


READ: list["weakref.ref[Weights]"] = []


def load_half(spec: PipelineSpec, options: ModelOptions, report: Report) -> FakePipeline:
    half = Weights()
    READ.append(weakref.ref(half))
    raise OSError("the second file is damaged")
