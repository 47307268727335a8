"""A request of the SDXL family that runs alone gives what the stock diffusers pipelines give.

The stock pipelines load the same folder but share no object with ours.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.spec import PipelineSpec
from pipelines.sdxl import StableDiffusionXL
from pipelines.sdxl_loading import Components
from pipelines.sdxl_solvers import RowSolver
from tests.pipelines.edits import edit, picture, pixels, run_to_end
from tests.pipelines.paintings import MASKED, SHOWN, SOLVERS, Stock, disc, finished, paint

# Largest difference of final latents, as a part of their largest value; and of 8-bit pixels.
TOLERANCE = 1e-5
PIXEL_TOLERANCE = 1
VISIBLE = 100  # times the tolerance: what a fault must exceed to count as seen

CASES: dict[str, dict[str, Any]] = {
    "text": {},
    "guided, away from nothing": {"cfg": 5.0},
    "guided, away from an empty text": {"cfg": 5.0, "negative_prompt": ""},
    "guided, away from a text": {"cfg": 2.5, "negative_prompt": "blurry, low quality photo!"},
    "a guidance below one": {"cfg": 0.0},
    "two steps": {"steps": 2},
    "nine steps": {"steps": 9, "cfg": 3.0},
    "wide canvas": {"width": 152, "height": 64},
    "other letters": {"prompt": "Ein Haus am See, naïve façade 山 🌅"},
    "picture": SHOWN,
    "picture, little changed": SHOWN | {"strength": 0.25},
    "picture, all anew": SHOWN | {"strength": 1.0, "cfg": 4.0},
    "picture, seven steps of nine, guided": SHOWN | {"steps": 9, "strength": 0.8, "cfg": 4.0},
    "picture of another shape": {"images": (picture(2, 150, 80),), "width": 64, "height": 104},
    "mask": MASKED | {"strength": 1.0},
    "mask, part of the schedule": MASKED | {"strength": 0.6, "steps": 5},
    "mask, guided": MASKED | {"strength": 0.75, "cfg": 4.0, "negative_prompt": "dark"},
    "mask, one step": MASKED | {"strength": 1.0, "steps": 1},
    "mask of another shape": {
        "images": (picture(2, 150, 80),),
        "mask": disc(150, 80),
        "width": 104,
        "strength": 0.5,
    },
}


@pytest.fixture(scope="module")
def stock(sdxl_checkpoint: Path) -> Stock:
    return Stock(sdxl_checkpoint)


def with_solver(parts: Components, solver: Any) -> StableDiffusionXL:
    return StableDiffusionXL(replace(parts, solver=solver), cache_bytes=0)


def error(ours: StableDiffusionXL, stock: Stock, solver: Any, request: Any) -> float:
    theirs = stock.run(solver, request)
    return float((finished(ours, request) - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_lone_request_equals_the_stock_pipelines(
    solver: str, case: str, stock: Stock, sdxl_parts: Components, sdxl_spec: PipelineSpec
) -> None:
    """The latents show errors that rounding to pixels would hide."""
    ours = with_solver(sdxl_parts, SOLVERS[solver])
    assert error(ours, stock, SOLVERS[solver], paint(sdxl_spec, **CASES[case])) < TOLERANCE


def test_pixels_equal_those_of_the_stock_pipeline(
    stock: Stock, sdxl: StableDiffusionXL, sdxl_spec: PipelineSpec
) -> None:
    """Decoding, and turning floats into bytes, are ours too."""
    request = paint(sdxl_spec, **MASKED, strength=0.75, cfg=3.0, width=96, height=72)
    (theirs,) = stock.run(SOLVERS["euler"], request, "pil")
    ours = pixels(edit(sdxl, request))
    assert ours.std() > 20  # a flat picture would equal anything
    assert np.abs(ours - np.asarray(theirs, np.int16)).max() <= PIXEL_TOLERANCE


@pytest.mark.parametrize("other", ["turbo", "lightning", "dpm++"])
def test_another_solver_is_seen(
    other: str, stock: Stock, sdxl: StableDiffusionXL, sdxl_spec: PipelineSpec
) -> None:
    """Control: ours steps as SDXL base does, and a checkpoint that names another solver must not."""
    assert error(sdxl, stock, SOLVERS[other], paint(sdxl_spec, cfg=3.0)) > VISIBLE * TOLERANCE


FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an empty text for no negative prompt": ({"cfg": 5.0}, {"cfg": 5.0, "negative_prompt": ""}),
    "no negative prompt": ({"cfg": 5.0, "negative_prompt": "blurry"}, {"cfg": 5.0}),
    "no mask": (MASKED | {"strength": 0.5}, SHOWN | {"strength": 0.5}),
    "another start": (SHOWN | {"strength": 0.5}, SHOWN | {"strength": 0.75}),
    "another order of what is drawn": (SHOWN | {"strength": 1.0}, {}),
    "one word": ({"prompt": "a cat on a beach"}, {"prompt": "a dog on a beach"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str, stock: Stock, sdxl: StableDiffusionXL, sdxl_spec: PipelineSpec) -> None:
    """Controls: what these tests would miss if it made no difference here."""
    ours, theirs = (paint(sdxl_spec, **wishes) for wishes in FAULTS[fault])
    expected = stock.run(SOLVERS["euler"], theirs)
    apart = float((finished(sdxl, ours) - expected).abs().max() / expected.abs().max())
    assert apart > VISIBLE * TOLERANCE


def test_turbo_under_a_mask_draws_what_upstream_draws(
    stock: Stock, sdxl_parts: Components, sdxl_spec: PipelineSpec
) -> None:
    """Control: without the draw for the masked picture, which no four-channel model sees, noise is other."""
    turbo = with_solver(sdxl_parts, SOLVERS["turbo"])
    request = paint(sdxl_spec, **MASKED, strength=1.0)
    (state,) = turbo.prepare([request])
    width, height = (side // 8 for side in request.canvas)
    generator = torch.Generator("cpu").manual_seed(request.seed)
    for _ in range(2):
        torch.randn((1, 4, height, width), generator=generator)
    state.solver.generator = generator
    run_to_end(turbo, [state])
    theirs = stock.run(SOLVERS["turbo"], request)
    assert error(turbo, stock, SOLVERS["turbo"], request) < TOLERANCE
    assert float((state.latents - theirs).abs().max() / theirs.abs().max()) > VISIBLE * TOLERANCE


def test_a_trailing_schedule_has_as_many_steps_as_were_asked_for() -> None:
    """Upstream's has one too many where a rounding error reaches past its end: 62 of 61."""
    for steps in (1, 2, 60, 61, 62, 100):
        for solver in SOLVERS.values():
            row = RowSolver(solver, steps, steps, torch.Generator("cpu"))
            assert row.remaining == steps
    stretched = copy.deepcopy(SOLVERS["lightning"])
    stretched.set_timesteps(61)
    assert len(stretched.timesteps) == 62
