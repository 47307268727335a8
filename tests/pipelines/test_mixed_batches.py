"""Rows of different users in one forward give what each gives alone; and the tests would notice if not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

from core.request import InferenceRequest
from core.spec import PipelineSpec
from pipelines.qwen_image import QwenImageEdit
from pipelines.qwen_loading import Components
from pipelines.qwen_text import NUMBERED_PICTURES
from tests.pipelines.edits import ask, picture, run_joining, run_to_end

# Latents reach 7. Measured at most: fp32 1e-5, bf16 0.05 (and bf16 is 0.65 away from fp32).
TOLERANCE = 5e-5
BF16_TOLERANCE = 0.25
# A fault must exceed the tolerance by this factor to count as seen.
VISIBLE = 100


def four_users(spec: PipelineSpec, **wishes: Any) -> list[InferenceRequest]:
    """Different prompts, pictures, seeds and step counts."""
    return [ask(spec, i, steps=steps, **wishes) for i, steps in enumerate((4, 4, 8, 2))]


def alone(pipeline: QwenImageEdit, request: InferenceRequest) -> torch.Tensor:
    states = pipeline.prepare([request])
    run_to_end(pipeline, states)
    return states[0].latents.float()


def worst_error(
    batched: QwenImageEdit,
    single: QwenImageEdit,
    requests: list[InferenceRequest],
    ticks: tuple[int, ...] = (0, 1, 1, 3),
) -> float:
    """Largest difference of any row's final latents, when row i joins at tick ``ticks[i]``."""
    states = run_joining(batched, requests, ticks)
    return max(
        float((state.latents.float() - alone(single, request)).abs().max())
        for state, request in zip(states, requests, strict=True)
    )


def rebuilt(parts: Components, **changes: Any) -> QwenImageEdit:
    return QwenImageEdit(replace(parts, **changes), NUMBERED_PICTURES, cache_bytes=0)


def mixed_guidance(spec: PipelineSpec) -> list[InferenceRequest]:
    users = four_users(spec)
    users[1] = ask(spec, 1, steps=4, cfg=4.0, negative_prompt="dark night, low quality photo of a car")
    users[2] = ask(spec, 2, steps=8, cfg=2.0, negative_prompt=" ")
    return users


BATCHES: dict[str, Callable[[PipelineSpec], list[InferenceRequest]]] = {
    "steps 4/4/8/2": four_users,
    "all guided, each in its own way": lambda spec: [
        ask(spec, i, steps=steps, cfg=cfg, negative_prompt=negative)
        for i, (steps, cfg, negative) in enumerate(
            [(4, 4.0, " "), (4, 1.5, "blurry"), (8, 7.0, "dark night, low quality photo"), (2, 3.0, "rain")]
        )
    ],
    "guided beside unguided": mixed_guidance,
    "two references each": lambda spec: [
        replace(r, **_pictures(spec, r, (picture(10 + i), picture(20 + i))))
        for i, r in enumerate(four_users(spec))
    ],
    "one picture, four wishes": lambda spec: [
        ask(spec, i, images=(picture(1),), steps=steps) for i, steps in enumerate((4, 4, 8, 2))
    ],
    "one wish, four seeds": lambda spec: [
        ask(spec, 0, id=str(i), seed=i, steps=steps) for i, steps in enumerate((4, 4, 8, 2))
    ],
    "wide canvas": lambda spec: four_users(spec, width=128, height=64),
}


def _pictures(spec: PipelineSpec, request: InferenceRequest, images: Any) -> dict[str, Any]:
    asked = ask(spec, images=images)
    return {
        "images": images,
        "reference_sizes": asked.reference_sizes,
        "condition_sizes": asked.condition_sizes,
    }


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("ticks", [(0, 0, 0, 0), (0, 1, 1, 3)], ids=["together", "joining"])
def test_rows_of_a_mixed_batch_equal_single_runs(
    batch: str, ticks: tuple[int, ...], pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """A picture must not depend on whose it shared a forward with."""
    assert worst_error(pipeline, pipeline, BATCHES[batch](spec), ticks) < TOLERANCE


@pytest.fixture(scope="module")
def without_zero_cond_t(parts: Components) -> QwenImageEdit:
    """Without the 2511 flag, under which reference tokens are modulated as at t = 0. It adds no weights."""
    assert parts.transformer.config.zero_cond_t
    config = dict(parts.transformer.config) | {"zero_cond_t": False}
    transformer = QwenImageTransformer2DModel.from_config(config)
    transformer.load_state_dict(parts.transformer.state_dict())
    return rebuilt(parts, transformer=transformer.eval())


@pytest.mark.parametrize("batch", ["steps 4/4/8/2", "guided beside unguided"])
def test_transformers_without_zero_cond_t_batch_as_well(
    batch: str, without_zero_cond_t: QwenImageEdit, pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """2511 and the pocket set it, 2509 does not; the second assertion shows that the flag matters."""
    requests = BATCHES[batch](spec)
    assert worst_error(without_zero_cond_t, without_zero_cond_t, requests) < TOLERANCE
    assert worst_error(without_zero_cond_t, pipeline, requests) > VISIBLE * TOLERANCE


def test_bf16_rows_agree_as_well_as_bf16_can(bf16_pipeline: QwenImageEdit, spec: PipelineSpec) -> None:
    """On a GPU everything runs in bf16; a batch must not add to what the format itself costs."""
    assert worst_error(bf16_pipeline, bf16_pipeline, mixed_guidance(spec)) < BF16_TOLERANCE


class Tampered(torch.nn.Module):
    """A transformer that is called with something changed."""

    def __init__(self, model: Any, tamper: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__()
        self.model, self.config, self.tamper = model, model.config, tamper

    def forward(self, **kwargs: Any) -> Any:
        return self.model(**(kwargs | self.tamper(kwargs)))


FAULTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "the first row's timestep for all": lambda k: {"timestep": k["timestep"][:1].expand_as(k["timestep"])},
    "no mask over padded text": lambda k: {"encoder_hidden_states_mask": None},
    "wrong picture shapes": lambda k: {"img_shapes": [[(1, 2, 8), (1, 8, 2)]] * len(k["img_shapes"])},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_forward_is_seen(
    fault: str, parts: Components, pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """Negative controls: each of these is a mistake that a batched loop can make."""
    faulty = rebuilt(parts, transformer=Tampered(parts.transformer, FAULTS[fault]))
    assert worst_error(faulty, pipeline, four_users(spec)) > VISIBLE * TOLERANCE


def test_a_shared_schedule_is_seen(pipeline: QwenImageEdit, spec: PipelineSpec) -> None:
    """Negative control: one solver for all rows moves each by the first row's deltas."""
    requests = [ask(spec, i, steps=steps) for i, steps in enumerate((4, 8))]
    states = pipeline.prepare(requests)
    shared = states[0].schedule
    own = states[1].schedule
    states[1].schedule = replace(own, deltas=(*shared.deltas, *own.deltas[len(shared) :]))
    run_to_end(pipeline, states)
    error = float((states[1].latents - alone(pipeline, requests[1])).abs().max())
    assert error > VISIBLE * TOLERANCE


class WithoutPositions(torch.nn.Module):
    """A text encoder that never hears which tokens are pictures."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner, self.get_image_features = model, model.get_image_features

    def forward(self, **kwargs: Any) -> Any:
        return self.inner(**(kwargs | {"mm_token_type_ids": None}))


def test_lost_multimodal_positions_are_seen(
    parts: Components, pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """Negative control: without them the pipeline runs on, and paints something else."""

    class Encoder:
        model = WithoutPositions(parts.text_encoder.model)
        config = parts.text_encoder.config

    faulty = rebuilt(parts, text_encoder=Encoder())
    assert worst_error(faulty, pipeline, four_users(spec)) > VISIBLE * TOLERANCE


def test_rows_of_unequal_sizes_are_refused(pipeline: QwenImageEdit, spec: PipelineSpec) -> None:
    """The transformer would use the first row's positions for all and only warn."""
    states = pipeline.prepare([ask(spec, 0), ask(spec, 1, width=128)])
    with pytest.raises(ValueError, match="equal in canvas"):
        pipeline.step(states)
