"""Sizes run inside the load: who asks first must not pay for the first time."""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.catalog import Catalog
from core.errors import CapacityError, ExecutionError, OutOfDeviceMemory
from core.request import Image, InferenceRequest, Task
from core.spec import PipelineSpec
from core.vision import Depth, Detect, Embed, Segment
from pipelines import dinov3, warm_up
from pipelines.checkpoint import Found
from pipelines.manager import ModelManager
from pipelines.options import LoadedPipeline, ModelOptions, Report, Silent, Tuning
from pipelines.qwen_image import QwenImageEdit, load_edit_plus
from pipelines.registry import catalog
from pipelines.shards import survey

MADE: list["Noted"] = []


class Noted:
    """A real pipeline that notes what it is given."""

    def __init__(self, pipeline: LoadedPipeline) -> None:
        self._pipeline = pipeline
        self.lightning_enabled, self.precision = pipeline.lightning_enabled, pipeline.precision
        self.caches, self.weights = pipeline.caches, pipeline.weights
        self.prepared: list[list[InferenceRequest]] = []
        self.stepped = self.decoded = 0

    def prepare(self, requests: Sequence[InferenceRequest]) -> list[Any]:
        self.prepared.append(list(requests))
        return self._pipeline.prepare(requests)

    def step(self, states: Sequence[Any]) -> None:
        self.stepped += 1
        self._pipeline.step(states)

    def decode(self, states: Sequence[Any]) -> list[Any]:
        self.decoded += 1
        return self._pipeline.decode(states)


def load_noted(spec: PipelineSpec, options: ModelOptions, report: Report) -> Noted:
    MADE.append(Noted(load_edit_plus(spec, options, report)))
    return MADE[-1]


def load_seeing(spec: PipelineSpec, options: ModelOptions, report: Report) -> Noted:
    module, _, function = catalog(spec.name).default.factory.partition(":")
    MADE.append(Noted(getattr(importlib.import_module(module), function)(spec, options, report)))
    return MADE[-1]


class Noting(Silent):
    def __init__(self) -> None:
        self.stages: list[tuple[str, int, int]] = []

    def stage(self, name: str, number: int, total: int) -> None:
        self.stages.append((name, number, total))


def test_the_default_model_is_warm_before_it_is_ready(checkpoint: Path, options: ModelOptions) -> None:
    """Each size from ``prepare`` to ``decode``, with two steps at most; the other models cost nothing."""
    row = replace(catalog("pocket-edit").default, factory=f"{__name__}:load_noted")
    other = replace(row, name="other", source="builtin:other")
    sizes = ((64, 64), (128, 64))
    models = ModelManager(
        Catalog([row, other], row.name),
        replace(options, warm_up=sizes, max_models=2),
        has_gpu=lambda: False,
        find=lambda spec, options, report: Found(checkpoint, survey(checkpoint)),
    )
    models.acquire("pocket-edit")
    made = MADE[-1]
    assert [batch[0].canvas for batch in made.prepared] == list(sizes)
    assert (made.stepped, made.decoded) == (4, 2)
    models.acquire("other")
    assert MADE[-1].prepared == []


def test_the_warm_up_says_what_it_does(pipeline: QwenImageEdit, spec: PipelineSpec) -> None:
    """It may take minutes where kernels are compiled."""
    noting = Noting()
    batches = warm_up.requests(spec, ModelOptions(warm_up=((64, 64), (80, 64))))
    warm_up.run(pipeline, batches, noting)
    assert noting.stages == [("warm-up 64x64", 1, 2), ("warm-up 80x64", 2, 2)]


def test_a_compiled_model_is_run_in_every_form_that_compiles_anew(
    pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """Else the first pair of callers would wait for a minute of compiling, and the watchdog see a hang."""
    options = ModelOptions(warm_up=((64, 64),), tuning=Tuning(compile=True))
    batches = warm_up.requests(spec, options)
    forms = {(len(batch), batch[0].guided, len({row.prompt for row in batch})) for batch in batches}
    assert forms == {(rows, guided, texts) for rows, texts in ((1, 1), (2, 1), (2, 2)) for guided in (0, 1)}
    warm_up.run(pipeline, batches, Silent())


def test_every_task_of_a_row_is_warmed() -> None:
    """A row that makes pictures of a text and edits them has two ways in."""
    row = replace(catalog("pocket-edit").default, tasks=frozenset({Task.GENERATE, Task.EDIT}))
    batches = warm_up.requests(row, ModelOptions(warm_up=((64, 64),)))
    assert [(batch[0].task, len(batch[0].images)) for batch in batches] == [
        (Task.GENERATE, 0),
        (Task.EDIT, 1),
    ]


VISION = {
    "pocket-sam3": Segment,
    "pocket-grounding-dino": Detect,
    "pocket-depth": Depth,
    "pocket-dinov3": Embed,
}


@pytest.mark.parametrize("name", VISION)
def test_a_vision_model_looks_at_a_picture_of_each_size(name: str, options: ModelOptions) -> None:
    """A size is the caller's: how large the picture enters the model is the row's affair."""
    sizes = ((64, 48), (40, 90))
    row = replace(catalog(name).default, factory=f"{__name__}:load_seeing")
    ModelManager(Catalog([row], row.name), replace(options, warm_up=sizes), has_gpu=lambda: False).acquire(
        name
    )
    made = MADE[-1]
    looks = [look for batch in made.prepared for look in batch]
    assert [look.size for look in looks] == list(sizes)
    assert [type(look.ask) for look in looks] == [VISION[name]] * 2
    assert (made.stepped, made.decoded) == (2, 2)


def test_a_vision_model_is_never_compiled_and_so_not_run_in_many_forms() -> None:
    """COMPILE is of models that make pictures."""
    row = catalog("pocket-dinov3").default
    assert warm_up.requests(row, ModelOptions(tuning=Tuning(compile=True))) == []
    options = ModelOptions(warm_up=((64, 48),), tuning=Tuning(compile=True))
    assert [len(batch) for batch in warm_up.requests(row, options)] == [1]


def test_a_picture_that_was_warmed_is_nobodys(options: ModelOptions) -> None:
    """What a model remembers of a picture must not be taken for another of the same size."""
    row = catalog("pocket-sam3").default
    batches = warm_up.requests(row, replace(options, warm_up=((64, 48), (48, 64))))
    assert len({look.images[0].digest for batch in batches for look in batch}) == 2


class Silenced(Noted):
    """Answers with a picture where findings were asked for."""

    def decode(self, states: Sequence[Any]) -> list[Any]:
        grey = Image(pixels=bytes(3), width=1, height=1)
        return [replace(result, output=grey) for result in super().decode(states)]


def test_findings_of_another_kind_fail_the_load(options: ModelOptions) -> None:
    """Of a row whose factory makes another model."""
    row = catalog("pocket-dinov3").default
    broken = Silenced(dinov3.load(row, options, Silent()))
    batches = warm_up.requests(row, ModelOptions(warm_up=((64, 48),)))
    with pytest.raises(ExecutionError, match="did not give what it asked for"):
        warm_up.run(broken, batches, Silent())


def test_nothing_configured_is_nothing_run(spec: PipelineSpec) -> None:
    """The default start must not become slower."""
    assert warm_up.requests(spec, ModelOptions()) == []


def test_a_size_that_the_row_refuses_is_told_before_anything_is_read(options: ModelOptions) -> None:
    """A typing error in WARM_UP must not cost a load of minutes first."""
    row = replace(catalog("pocket-edit").default, factory="tests.pipelines.fakes:load_too_large")
    models = ModelManager(
        Catalog([row], row.name), replace(options, warm_up=((64, 9000),)), has_gpu=lambda: False
    )
    with pytest.raises(CapacityError, match=r"a size of WARM_UP cannot be run: height 9000") as caught:
        models.acquire("pocket-edit")
    assert not caught.value.retryable


class Broken:
    """fault: raised by every step."""

    def __init__(self, pipeline: QwenImageEdit, fault: Exception) -> None:
        self._pipeline, self._fault = pipeline, fault

    def prepare(self, requests: Sequence[InferenceRequest]) -> list[Any]:
        return list(self._pipeline.prepare(requests))

    def step(self, states: Sequence[Any]) -> None:
        raise self._fault

    def decode(self, states: Sequence[Any]) -> list[Any]:
        raise NotImplementedError


def test_what_fails_in_the_warm_up_fails_the_load(pipeline: QwenImageEdit, spec: PipelineSpec) -> None:
    """A model that cannot make its own sizes is not ready; memory names the size to take out."""
    batches = warm_up.requests(spec, ModelOptions(warm_up=((64, 64),)))
    with pytest.raises(ValueError, match="kernel"):
        warm_up.run(Broken(pipeline, ValueError("kernel")), batches, Silent())
    with pytest.raises(CapacityError, match="take that size out of WARM_UP") as caught:
        warm_up.run(Broken(pipeline, OutOfDeviceMemory()), batches, Silent())
    assert "64x64" in caught.value.message
