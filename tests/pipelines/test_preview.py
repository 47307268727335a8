"""Rough pictures read off the latents: like the result in colour, cheap, and without effect on the row."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as pillow

from core.request import Image, InferenceRequest
from core.spec import PipelineSpec
from pipelines.preview import LatentColours
from pipelines.qwen_image import QwenImageEdit
from pipelines.sdxl import StableDiffusionXL
from pipelines.sdxl_loading import Components
from tests.pipelines.edits import ask, run_to_end
from tests.pipelines.paintings import SOLVERS, paint
from tests.pipelines.test_sdxl_parity import with_solver


def as_array(image: Image, side: int) -> Any:
    picture = pillow.frombytes("RGB", image.size, image.pixels)
    return np.asarray(picture.resize((side, side), pillow.Resampling.BOX), np.float64)


def likeness(one: Image, other: Image) -> float:
    """Correlation of colours, both at the smaller one's size."""
    side = min(one.width, other.width)
    return float(np.corrcoef(as_array(one, side).ravel(), as_array(other, side).ravel())[0, 1])


def previews_of(pipeline: Any, request: InferenceRequest) -> tuple[list[Image], Image]:
    """After every step, and the result."""
    (state,) = pipeline.prepare([request])
    seen = []
    while not state.finished:
        pipeline.step([state])
        seen.append(pipeline.preview(state))
    return seen, pipeline.decode([state])[0].image


def test_an_edits_previews_come_ever_closer_to_it(pipeline: QwenImageEdit, spec: PipelineSpec) -> None:
    """The last one's latents are the result's own; the first already has its broad colours."""
    request = replace(ask(spec, width=128, height=128), previews=3)
    seen, result = previews_of(pipeline, request)
    assert [image.size for image in seen] == [(16, 16)] * 4
    assert likeness(seen[-1], result) > 0.9
    assert likeness(seen[0], result) > 0.6


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_tells_where_its_row_is_going(
    solver: str, sdxl_parts: Components, sdxl_spec: PipelineSpec
) -> None:
    """At the last step but noise's own remainder that is where the row ends."""
    pipeline = with_solver(sdxl_parts, SOLVERS[solver])
    (state,) = pipeline.prepare([replace(paint(sdxl_spec), previews=3)])
    assert pipeline.preview(state).size == (8, 8)  # before the first step too
    run_to_end(pipeline, [state])
    assert state.solver.expected is not None
    assert torch.allclose(state.solver.expected, state.latents, atol=1e-3)


@pytest.mark.parametrize("family", ["edit", "sdxl"])
def test_a_row_with_previews_becomes_what_it_would_have_become(
    family: str, pipeline: QwenImageEdit, spec: PipelineSpec, sdxl: StableDiffusionXL, sdxl_spec: PipelineSpec
) -> None:
    """Bit for bit."""
    served: Any = pipeline if family == "edit" else sdxl
    request = ask(spec) if family == "edit" else paint(sdxl_spec)
    (plain,) = served.prepare([request])
    run_to_end(served, [plain])
    _, watched = previews_of(served, replace(request, previews=3))
    assert watched.pixels == served.decode([plain])[0].image.pixels


def decoded(calls: list[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """An autoencoder whose colours are exactly linear in the first three channels."""

    def decode(latents: torch.Tensor) -> torch.Tensor:
        calls.append(latents.shape[0] * latents.shape[-1] ** 2 * 64)
        colours = (latents[:, :3] * 20 + 100).repeat_interleave(8, 2).repeat_interleave(8, 3)
        return colours.permute(0, 2, 3, 1)

    return decode


def test_the_rule_is_found_once_and_is_the_autoencoders_own() -> None:
    """Where colours are linear in the latents, nothing is lost but the rounding."""
    calls: list[int] = []
    colours = LatentColours(decoded(calls), 16, torch.device("cpu"), torch.float32)
    latents = torch.randn((16, 6, 9), generator=torch.Generator("cpu").manual_seed(3))
    shown = colours.show(latents, "a")
    assert shown.size == (9, 6)
    wanted = (latents[:3] * 20 + 100).permute(1, 2, 0).round().numpy()
    assert np.abs(np.frombuffer(shown.pixels, np.uint8).reshape(6, 9, 3) - wanted).max() <= 1
    colours.show(latents, "b")
    assert calls == [3 * 64 * 64]  # pixels, of a megapixel that a decode may have


def test_a_preview_is_far_cheaper_than_a_step(pipeline: QwenImageEdit, spec: PipelineSpec) -> None:
    """So that no neighbour waits for it; the first one, which finds the rule, is not measured here."""
    (state,) = pipeline.prepare([replace(ask(spec, width=256, height=256), previews=1)])
    pipeline.step([state])
    pipeline.preview(state)
    began = time.perf_counter()
    for _ in range(20):
        pipeline.preview(state)
    previews = (time.perf_counter() - began) / 20
    began = time.perf_counter()
    pipeline.step([state])
    assert previews < (time.perf_counter() - began) / 4
