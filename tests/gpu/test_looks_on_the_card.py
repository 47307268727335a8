"""Vision models on a CUDA device; ``pytest -m gpu tests/gpu`` runs it, other runs leave it out.

What comes out of a forward is compared, before thresholds: one rounding can move a score over one of those.
"""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.errors import ExecutionError
from core.request import InferenceRequest
from pipelines.options import ModelOptions, Precision, Silent
from pipelines.registry import catalog
from tests.pipelines.looks import boxed_looks_of, difference, look, looks_of, spoil_pictures

pytestmark = pytest.mark.gpu
POCKETS = ("pocket-sam3", "pocket-grounding-dino", "pocket-depth", "pocket-dinov3")
MODES = ("fp32", "bf16")
# Between alone and in a batch, as a part of the whole. In fp32 convolutions may still be taken in TF32.
APART = {"fp32": 5e-3, "bf16": 0.05}
SIZE = (640, 480)


@pytest.fixture(scope="module", autouse=True)
def card() -> torch.device:
    assert torch.cuda.is_available(), "these tests were asked for and there is no CUDA device"
    return torch.device("cuda")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> ModelOptions:
    """Without a cache: a picture that was encoded alone must be encoded again beside others."""
    folder: Path = tmp_path_factory.mktemp("cache")
    return ModelOptions(cache_dir=folder, condition_cache_bytes=0)


def loaded(name: str, mode: Any, options: ModelOptions) -> Any:
    spec = catalog(name).default
    module, _, function = spec.factory.partition(":")
    load = getattr(importlib.import_module(module), function)
    return load(spec, replace(options, precision=Precision(mode=mode)), Silent())


def computed(pipeline: Any, requests: list[InferenceRequest]) -> list[Any]:
    """States after their one step, together."""
    states: list[Any] = pipeline.prepare(requests)
    pipeline.step(states)
    return states


def given(state: Any) -> Tensor:
    """The numbers of a row's answer, before any of them is compared with a threshold."""
    raw = state.raw
    for name in ("logits", "depth"):
        if hasattr(raw, name):
            raw = getattr(raw, name)
            break
    assert isinstance(raw, Tensor)
    assert raw.device.type == "cuda"
    return raw.float()


def apart(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    return float((one - other).norm() / one.norm())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", POCKETS)
def test_a_row_alone_is_the_row_batched(name: str, mode: str, options: ModelOptions) -> None:
    """Other batches use other kernels, so not to the bit; another row's answer is far away."""
    pipeline = loaded(name, mode, options)
    requests = looks_of(name)
    alone = [given(computed(pipeline, [request])[0]) for request in requests]
    batched = [given(state) for state in computed(pipeline, requests)]
    assert all(bool(values.isfinite().all()) for values in batched)
    errors = [apart(a, b) for a, b in zip(alone, batched, strict=True)]
    assert max(errors) < APART[mode], errors
    # The same question of two pictures, since answers to different ones differ in their shape.
    others = [given(computed(pipeline, [replace_picture(requests[0], number)])[0]) for number in (5, 6)]
    assert min(apart(alone[0], other) for other in others) > 2 * APART[mode]


def replace_picture(request: InferenceRequest, number: int) -> InferenceRequest:
    return replace(request, images=look(request.model, number).images)


@pytest.mark.parametrize("mode", MODES)
def test_boxes_go_through_roi_align_on_the_card(mode: str, options: ModelOptions) -> None:
    """Its own kernel, without torchvision's; and text and boxes stand side by side in one request."""
    pipeline = loaded("pocket-sam3", mode, options)
    requests = boxed_looks_of("pocket-sam3")
    alone = [given(computed(pipeline, [request])[0]) for request in requests]
    batched = [given(state) for state in computed(pipeline, requests)]
    assert max(apart(a, b) for a, b in zip(alone, batched, strict=True)) < APART[mode]


@pytest.mark.parametrize("name", POCKETS)
def test_answers_in_fp32_are_found_again_in_a_batch(name: str, options: ModelOptions) -> None:
    """To the end: boxes in pixels, masks, depths, features."""
    pipeline = loaded(name, "fp32", options)
    requests = [look(name, number, width=SIZE[0], height=SIZE[1]) for number in range(4)]
    alone = [pipeline.decode(computed(pipeline, [request]))[0] for request in requests]
    batched = pipeline.decode(computed(pipeline, requests))
    limit = 1.0 if name in ("pocket-sam3", "pocket-grounding-dino") else 5e-3  # pixels, or of unit size
    assert max(difference(a, b) for a, b in zip(alone, batched, strict=True)) <= limit
    assert difference(alone[0], batched[1]) > limit


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", POCKETS)
def test_a_spoilt_row_fails_alone(name: str, mode: str, options: ModelOptions) -> None:
    """Values that are not finite do not reach the rows beside them."""
    pipeline = loaded(name, mode, options)
    requests = looks_of(name)
    clean = [given(state) for state in computed(pipeline, requests)]
    states = pipeline.prepare(requests)
    spoil_pictures(states[1])
    pipeline.step(states)
    with pytest.raises(ExecutionError, match="not finite"):
        pipeline.decode(states[1:2])
    for at in (0, 2, 3):
        assert apart(clean[at], given(states[at])) < APART[mode]
    pipeline.decode([states[at] for at in (0, 2, 3)])


@pytest.mark.parametrize("name", POCKETS)
def test_weights_stay_whole_and_are_counted(name: str, options: ModelOptions) -> None:
    """What the manager makes room for: fp32, on the card, whatever the products are taken in."""
    pipeline = loaded(name, "bf16", options)
    assert pipeline.weights.precision == "fp32"
    assert pipeline.weights.nbytes > 0
    assert "fp32 weights" in pipeline.precision
