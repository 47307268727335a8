"""Rows of the SDXL family in one forward give what each gives alone, and what the stock pipelines give."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.pipeline import BatchKey
from core.request import InferenceRequest
from core.spec import PipelineSpec
from pipelines.sdxl import StableDiffusionXL
from pipelines.sdxl_loading import Components
from tests.pipelines.edits import picture, run_joining, run_to_end
from tests.pipelines.paintings import SOLVERS, Stock, disc, finished, paint

# Of the largest final latent. Measured: 4e-6 at most; in bf16 nothing, and 0.034 from fp32.
TOLERANCE = 1e-5
BF16_TOLERANCE = 0.03
VISIBLE = 100  # a fault must exceed the tolerance by this factor to count as seen

LONG = "a golden lamp by the door of a red house, " * 8


def of_pictures(spec: PipelineSpec, cfgs: tuple[float, ...]) -> list[InferenceRequest]:
    """A text alone, a picture, a picture under a mask, a picture of another shape: each its own way."""
    return [
        paint(spec, 0, steps=4, cfg=cfgs[0]),
        paint(spec, 1, steps=6, cfg=cfgs[1], images=(picture(1),), strength=0.5),
        paint(spec, 2, steps=5, cfg=cfgs[2], images=(picture(2),), mask=disc(), strength=0.8),
        paint(spec, 3, steps=2, cfg=cfgs[3], images=(picture(3, 150, 90),), strength=1.0),
    ]


BATCHES: dict[str, Callable[[PipelineSpec], list[InferenceRequest]]] = {
    "texts, steps 4/4/8/2": lambda spec: [paint(spec, i, steps=n) for i, n in enumerate((4, 4, 8, 2))],
    "texts, guided away from different things": lambda spec: [
        paint(spec, i, steps=steps, cfg=cfg, negative_prompt=negative)
        for i, (steps, cfg, negative) in enumerate(
            [(4, 5.0, None), (4, 1.5, ""), (8, 7.0, "dark, low quality photo"), (2, 3.0, "rain")]
        )
    ],
    "texts and pictures": lambda spec: of_pictures(spec, (1.0, 1.0, 0.0, 1.0)),
    "texts and pictures, guided": lambda spec: of_pictures(spec, (5.0, 2.0, 7.0, 3.0)),
    "masks": lambda spec: [
        paint(spec, i, steps=steps, images=(picture(i),), mask=disc(), strength=strength)
        for i, (steps, strength) in enumerate([(4, 1.0), (6, 0.5), (3, 0.7)])
    ],
}


@pytest.fixture(scope="module")
def stock(sdxl_checkpoint: Path) -> Stock:
    return Stock(sdxl_checkpoint)


def rebuilt(parts: Components, **changes: Any) -> StableDiffusionXL:
    return StableDiffusionXL(replace(parts, **changes), cache_bytes=0)


def apart(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours.float() - expected.float()).abs().max() / expected.abs().max())


def worst(
    batched: StableDiffusionXL,
    single: StableDiffusionXL,
    requests: list[InferenceRequest],
    ticks: tuple[int, ...] = (0, 1, 1, 3),
) -> float:
    """Largest difference of a row of a batch, where row i joins at tick ``ticks[i]``, from the row alone."""
    states = run_joining(batched, requests, ticks[: len(requests)])
    return max(
        apart(state.latents, finished(single, request))
        for state, request in zip(states, requests, strict=True)
    )


@pytest.mark.parametrize("ticks", [(0, 0, 0, 0), (0, 1, 1, 3), (2, 0, 0, 1)], ids=str)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_of_a_mixed_batch_equal_the_stock_pipelines(
    solver: str,
    batch: str,
    ticks: tuple[int, ...],
    stock: Stock,
    sdxl_parts: Components,
    sdxl_spec: PipelineSpec,
) -> None:
    """Whoever else is there, whatever each began with, and whenever each one joined."""
    requests = BATCHES[batch](sdxl_spec)
    assert len({BatchKey.of(request) for request in requests}) == 1
    states = run_joining(rebuilt(sdxl_parts, solver=SOLVERS[solver]), requests, ticks[: len(requests)])
    for state, request in zip(states, requests, strict=True):
        assert apart(state.latents, stock.run(SOLVERS[solver], request)) < TOLERANCE


MIXED: dict[str, Callable[[PipelineSpec], list[InferenceRequest]]] = {
    "guided beside unguided": lambda spec: of_pictures(spec, (1.0, 4.0, 1.0, 2.0)),
    "long texts beside short": lambda spec: [
        paint(spec, 0, prompt=LONG),
        paint(spec, 1, steps=6, cfg=4.0, negative_prompt=LONG[:500]),
        paint(spec, 2, prompt=LONG + LONG[:300], cfg=2.0),
        paint(spec, 3),
    ],
}


@pytest.mark.parametrize("batch", MIXED)
def test_rows_that_stock_cannot_run_equal_single_runs(
    batch: str, sdxl: StableDiffusionXL, sdxl_spec: PipelineSpec
) -> None:
    """Padding of texts in particular must not show."""
    assert worst(sdxl, sdxl, MIXED[batch](sdxl_spec)) < TOLERANCE


class Tampered(torch.nn.Module):
    """A denoiser that is called with something changed."""

    def __init__(self, model: Any, tamper: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__()
        self.model, self.config, self.tamper = model, model.config, tamper

    def forward(self, sample: Any, timestep: Any, **kwargs: Any) -> Any:
        inputs = {"sample": sample, "timestep": timestep, **kwargs}
        return self.model(**(inputs | self.tamper(inputs)))


def added(inputs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"added_cond_kwargs": inputs["added_cond_kwargs"] | changes}


FAULTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "the first row's timestep for all": lambda k: {"timestep": k["timestep"][:1].expand_as(k["timestep"])},
    "sides in the wrong order": lambda k: added(
        k, time_ids=k["added_cond_kwargs"]["time_ids"][:, [1, 0, 2, 3, 5, 4]]
    ),
    "the first row's pooled text for all": lambda k: added(
        k, text_embeds=k["added_cond_kwargs"]["text_embeds"][:1].expand(len(k["sample"]), -1)
    ),
    "no mask over padded text": lambda k: {"encoder_attention_mask": None},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_forward_is_seen(
    fault: str, sdxl_parts: Components, sdxl: StableDiffusionXL, sdxl_spec: PipelineSpec
) -> None:
    """Controls: each of these is a mistake that a batched loop can make."""
    faulty = rebuilt(sdxl_parts, unet=Tampered(sdxl_parts.unet, FAULTS[fault]))
    requests = [
        paint(sdxl_spec, i, steps=steps, width=104, prompt=prompt)
        for i, (steps, prompt) in enumerate([(4, "night"), (8, LONG), (2, "a cat")])
    ]
    assert worst(faulty, sdxl, requests) > VISIBLE * TOLERANCE


def shared_generator(states: list[Any]) -> None:
    states[1].solver.generator = states[0].solver.generator


def shared_solver(states: list[Any]) -> None:
    states[1].solver._solver = copy.deepcopy(states[0].solver._solver)


def lost_mask(states: list[Any]) -> None:
    states[1].kept = None


@pytest.mark.parametrize("fault", [shared_generator, shared_solver, lost_mask])
def test_a_fault_in_a_rows_own_state_is_seen(
    fault: Callable[[list[Any]], None], sdxl_parts: Components, sdxl_spec: PipelineSpec
) -> None:
    """Controls: what is a row's alone must be its own. Turbo's solver draws at every step."""
    turbo = rebuilt(sdxl_parts, solver=SOLVERS["turbo"])
    masked = {"images": (picture(1),), "mask": disc(), "strength": 1.0}
    requests = [paint(sdxl_spec, 0, steps=6), paint(sdxl_spec, 1, steps=5, **masked)]
    states = turbo.prepare(requests)
    fault(states)
    run_to_end(turbo, states)
    assert apart(states[1].latents, finished(turbo, requests[1])) > VISIBLE * TOLERANCE


class Failing(torch.nn.Module):
    """A solver's worst moment: a denoiser that gives one row too few, so that the last solver has nothing."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config, self.broken = model, model.config, False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        (prediction,) = self.model(*args, **kwargs)
        return (prediction[:-1] if self.broken else prediction,)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_that_fails_half_way_can_be_taken_again(
    solver: str, sdxl_parts: Components, sdxl_spec: PipelineSpec
) -> None:
    """The mux retries in smaller groups: neither solver, generator nor latents may have moved."""
    unet = Failing(sdxl_parts.unet)
    pipeline = rebuilt(sdxl_parts, unet=unet, solver=SOLVERS[solver])
    requests = of_pictures(sdxl_spec, (1.0, 1.0, 1.0, 1.0))
    states = pipeline.prepare(requests)
    pipeline.step(states)
    before = [state.remaining for state in states]
    running = [state for state in states if not state.finished]
    unet.broken = True
    with pytest.raises(ValueError, match="argument"):
        pipeline.step(running)
    unet.broken = False
    assert [state.remaining for state in states] == before
    run_to_end(pipeline, states)
    for state, request in zip(states, requests, strict=True):
        assert apart(state.latents, finished(pipeline, request)) < TOLERANCE


def test_a_batch_in_bf16_is_as_near_as_the_format_allows(
    sdxl_parts: Components, sdxl_spec: PipelineSpec
) -> None:
    """The format of a GPU, beside an autoencoder that stays in fp32."""
    encoders = tuple((tokenizer, copy.deepcopy(model).bfloat16()) for tokenizer, model in sdxl_parts.encoders)
    unet = copy.deepcopy(sdxl_parts.unet).bfloat16()
    pipeline = rebuilt(sdxl_parts, unet=unet, encoders=encoders, dtype=torch.bfloat16)
    requests = of_pictures(sdxl_spec, (4.0, 2.0, 7.0, 3.0))
    assert worst(pipeline, pipeline, requests) < BF16_TOLERANCE
    states = pipeline.prepare(requests)
    run_to_end(pipeline, states)
    assert {state.latents.dtype for state in states} == {torch.bfloat16}
    assert len(pipeline.decode(states)) == len(requests)


def test_what_a_mask_keeps_is_the_picture(sdxl: StableDiffusionXL, sdxl_spec: PipelineSpec) -> None:
    """Under black the latents are the picture's own, whatever the prompt says."""
    (state,) = sdxl.prepare([paint(sdxl_spec, images=(picture(1),), mask=disc(), strength=0.8, steps=5)])
    run_to_end(sdxl, [state])
    assert state.kept is not None
    kept = (state.kept.mask == 0).expand_as(state.latents)
    assert 0.2 < kept.float().mean() < 0.9
    assert torch.equal(state.latents[kept], state.kept.clean[kept])
    assert float((state.latents - state.kept.clean)[~kept].abs().max()) > 0.1


def test_rows_of_unequal_canvas_are_refused(sdxl: StableDiffusionXL, sdxl_spec: PipelineSpec) -> None:
    """Nothing can be stacked; the sentence names why."""
    states = sdxl.prepare([paint(sdxl_spec, 0)]) + sdxl.prepare([paint(sdxl_spec, 1, width=128)])
    with pytest.raises(ValueError, match="equal in canvas"):
        sdxl.step(states)
