"""A request that runs alone gives what the stock diffusers pipeline gives.

The stock pipelines load the same folder but not the same objects, so nothing that we do to the models
(cutting the autoencoder down to still pictures) is shared with them.
"""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as pillow

from core.request import InferenceRequest
from core.spec import PipelineSpec
from pipelines.qwen_image import QwenImageEdit
from pipelines.qwen_loading import Components
from pipelines.qwen_text import ONE_PICTURE
from tests.pipelines.edits import ask, edit, picture, pixels, run_to_end

# Latents reach 7 in size; measured: 1.1e-5 at most. Pixels may round the other way.
LATENT_TOLERANCE = 5e-5
PIXEL_TOLERANCE = 1
BF16_TOLERANCE = 0.35  # measured 0.17; the stock pipeline in bf16 is 1.0 away from itself in fp32


def with_positions(stock: Any) -> Any:
    """Make the stock text encoder use multimodal positions (huggingface/diffusers#14194)."""

    def add_token_types(model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        image = kwargs["input_ids"] == model.config.image_token_id
        return args, kwargs | {"mm_token_type_ids": image.int()}

    stock.text_encoder.register_forward_pre_hook(add_token_types, with_kwargs=True)
    return stock


def run_stock(stock: Any, request: InferenceRequest, output_type: str) -> Any:
    images = [pillow.frombytes("RGB", image.size, image.pixels) for image in request.images]
    return stock(
        image=images if "Plus" in type(stock).__name__ else images[0],
        prompt=request.prompt,
        negative_prompt=request.negative_prompt if request.guided else None,
        true_cfg_scale=request.cfg,
        num_inference_steps=request.steps,
        width=request.canvas[0],
        height=request.canvas[1],
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type=output_type,
    ).images


def latent_error(stock: Any, ours: QwenImageEdit, request: InferenceRequest) -> float:
    states = ours.prepare([request])
    run_to_end(ours, states)
    return float((run_stock(stock, request, "latent")[0] - states[0].latents).abs().max())


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "guided": {"cfg": 4.0, "negative_prompt": "dark, blurry"},
    "slightly guided": {"cfg": 1.1, "negative_prompt": " "},
    "two references": {"images": (picture(1), picture(2, 150, 80))},
    "three references, guided": {"images": (picture(1), picture(2, 80, 150), picture(3)), "cfg": 3.0},
    "wide canvas": {"width": 160, "height": 64},
    "tall canvas, wide reference": {"width": 64, "height": 176, "images": (picture(5, 300, 90),)},
    "two steps": {"steps": 2},
    "nine steps": {"steps": 9, "cfg": 2.5},
    "other letters": {"prompt": "把天空变成红色 🌅 naïve façade"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_lone_edit_equals_the_stock_edit_plus_pipeline(
    case: str, stock_plus: Any, pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """The latents show errors that rounding to pixels would hide."""
    request = ask(spec, **CASES[case])
    assert latent_error(with_positions(stock_plus), pipeline, request) < LATENT_TOLERANCE


@pytest.mark.parametrize("case", ["plain", "guided", "two references"])
def test_a_lone_edit_in_bf16_is_as_near_as_the_format_allows(
    case: str, stock_plus: Any, bf16_pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """The format of a GPU, where upstream rounds more often than we do."""
    stock = with_positions(stock_plus.to(torch.bfloat16))
    assert latent_error(stock, bf16_pipeline, ask(spec, **CASES[case])) < BF16_TOLERANCE


def test_pixels_equal_those_of_the_stock_pipeline(
    stock_plus: Any, pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """Decoding on single frames, and turning floats into bytes, are ours too."""
    request = ask(spec, cfg=3.0, width=96, height=64)
    (theirs,) = run_stock(with_positions(stock_plus), request, "pil")
    ours = pixels(edit(pipeline, request))
    assert ours.std() > 20  # a flat picture would equal anything
    assert np.abs(ours - np.asarray(theirs, np.int16)).max() <= PIXEL_TOLERANCE


@pytest.mark.parametrize("case", ["plain", "guided", "wide canvas", "nine steps"])
def test_a_lone_edit_equals_the_stock_first_release(
    case: str, stock_edit: Any, parts: Components, spec: PipelineSpec
) -> None:
    """Its template names the picture differently and it sees the picture at its size as a reference."""
    ours = QwenImageEdit(parts, ONE_PICTURE, cache_bytes=0)
    request = ask(spec, **CASES[case])
    assert latent_error(with_positions(stock_edit), ours, request) < LATENT_TOLERANCE


def test_the_first_release_and_its_successors_differ_in_their_template(
    stock_edit: Any, pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """Control: the wrong template must show."""
    assert latent_error(with_positions(stock_edit), pipeline, ask(spec)) > 100 * LATENT_TOLERANCE


def test_the_stock_pipeline_without_multimodal_positions_differs(
    stock_plus: Any, pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """Control: what upstream loses is visible here, so our having it is tested above."""
    # Of a picture of four tokens few positions are lost; measured 1.1e-3.
    assert latent_error(stock_plus, pipeline, ask(spec)) > 10 * LATENT_TOLERANCE
