"""A masked edit paints inside the mask what the stock inpainting pipeline paints, and nothing outside it."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_inpaint as upstream
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import QwenImageEditPipeline
from PIL import Image as pillow

from core.request import Image, InferenceRequest
from core.spec import PipelineSpec
from pipelines.qwen_image import EditState, QwenImageEdit
from pipelines.qwen_inpaint import Region
from pipelines.qwen_loading import Components
from pipelines.qwen_text import NUMBERED_PICTURES, ONE_PICTURE
from pipelines.registry import catalog
from tests.pipelines.edits import ask, edit, picture, pixels, run_joining, run_to_end
from tests.pipelines.test_parity import with_positions

LATENT_TOLERANCE = 5e-5
PIXEL_TOLERANCE = 1
AREA = 96 * 96  # of the canvas and of the reference: upstream knows no other case


class StockInpaint(upstream.QwenImageEditInpaintPipeline):  # type: ignore[misc]
    """Upstream's, but the picture's latents are their mean, as upstream has it where nothing is masked."""

    _encode_vae_image = QwenImageEditPipeline._encode_vae_image


@pytest.fixture(scope="module")
def row() -> PipelineSpec:
    return catalog("pocket-edit", reference_area=AREA, condition_area=AREA).default


@pytest.fixture(scope="module")
def stock(checkpoint: Path, processor: Any) -> Iterator[Any]:
    before = upstream.calculate_dimensions
    upstream.calculate_dimensions = lambda area, ratio: before(AREA, ratio)
    pipeline = StockInpaint.from_pretrained(checkpoint, processor=processor, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    yield with_positions(pipeline)
    upstream.calculate_dimensions = before


@pytest.fixture(scope="module")
def ours(parts: Components) -> QwenImageEdit:
    """Under the template of the first release, which is the one that upstream's inpainting has."""
    return QwenImageEdit(parts, ONE_PICTURE, cache_bytes=0)


Painted = Callable[[Any, Any], Any]  # of (across, down), each 0 ... 1


def mask(painted: Painted, width: int = 96, height: int = 96) -> Image:
    down, across = np.mgrid[0:height, 0:width]
    white = np.asarray(painted(across / width, down / height), bool) * np.uint8(255)
    return Image(pixels=np.repeat(white[..., None], 3, axis=2).tobytes(), width=width, height=height)


def left(across: Any, down: Any) -> Any:
    return across < 0.5


def disc(across: Any, down: Any) -> Any:
    return (across - 0.6) ** 2 + (down - 0.4) ** 2 < 0.1


def masked(row: PipelineSpec, painted: Painted = disc, **wishes: Any) -> InferenceRequest:
    image = picture(0)
    defaults: dict[str, Any] = {"images": (image,), "mask": mask(painted), "width": 96, "height": 96}
    return ask(row, **(defaults | wishes))


def run(pipeline: QwenImageEdit, request: InferenceRequest) -> EditState:
    states = pipeline.prepare([request])
    run_to_end(pipeline, states)
    return states[0]


def run_stock(stock: Any, request: InferenceRequest, output_type: str) -> Any:
    assert request.mask is not None
    shown = [pillow.frombytes("RGB", i.size, i.pixels) for i in (*request.images, request.mask)]
    return stock(
        image=shown[0],
        mask_image=shown[1],
        prompt=request.prompt,
        negative_prompt=request.negative_prompt if request.guided else None,
        true_cfg_scale=request.cfg,
        num_inference_steps=request.steps,
        strength=1.0,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type=output_type,
    ).images[0]


def latent_error(stock: Any, pipeline: QwenImageEdit, request: InferenceRequest) -> float:
    return float((run_stock(stock, request, "latent") - run(pipeline, request).latents).abs().max())


CASES: dict[str, dict[str, Any]] = {
    "a disc": {},
    "the left half, guided": {"painted": left, "cfg": 4.0, "negative_prompt": "dark, blurry"},
    "nine steps": {"steps": 9},
    "two steps": {"steps": 2},
    "a larger picture": {"images": (picture(3, 250, 250),), "mask": mask(disc, 250, 250)},
    "a soft edge": {"mask": picture(8)},
}


@pytest.mark.parametrize("case", CASES)
def test_a_masked_edit_equals_the_stock_inpainting_pipeline(
    case: str, stock: Any, ours: QwenImageEdit, row: PipelineSpec
) -> None:
    """Compared before anything is pasted: the latents, inside the mask and out."""
    assert latent_error(stock, ours, masked(row, **CASES[case])) < LATENT_TOLERANCE


class WrongNoise(Region):
    """A tenth more noise than there is where the step ends."""

    def keep(self, latents: torch.Tensor, sigma: float) -> torch.Tensor:
        return super().keep(latents, sigma * 1.1)


class Inverted(Region):
    def keep(self, latents: torch.Tensor, sigma: float) -> torch.Tensor:
        return replace_painted(self).keep(latents, sigma)


def replace_painted(region: Region) -> Region:
    values = {field.name: getattr(region, field.name) for field in fields(Region)}
    return Region(**(values | {"painted": ~region.painted}))


class Ignored(Region):
    def keep(self, latents: torch.Tensor, sigma: float) -> torch.Tensor:
        return latents


@pytest.mark.parametrize("fault", [WrongNoise, Inverted, Ignored])
def test_a_faulty_mask_is_seen(
    fault: type[Region], stock: Any, ours: QwenImageEdit, row: PipelineSpec
) -> None:
    """Controls: each would pass for inpainting at a glance."""
    request = masked(row)
    (state,) = ours.prepare([request])
    assert state.region is not None
    state.region = fault(**{field.name: getattr(state.region, field.name) for field in fields(Region)})
    run_to_end(ours, [state])
    error = (run_stock(stock, request, "latent") - state.latents).abs().max()
    assert float(error) > 100 * LATENT_TOLERANCE


def test_pixels_inside_are_the_stock_pipelines_and_outside_the_callers(
    stock: Any, ours: QwenImageEdit, row: PipelineSpec
) -> None:
    """Upstream's pixels outside are the autoencoder's: near the caller's, which people notice."""
    request = masked(row, cfg=3.0)
    theirs = np.asarray(run_stock(stock, request, "pil"), np.int16)
    painted = pixels(edit(ours, request))
    assert request.mask is not None
    original, white = (
        np.frombuffer(i.pixels, np.uint8).reshape(96, 96, 3) for i in (request.images[0], request.mask)
    )
    inside = white > 127
    assert np.abs(painted - theirs)[inside].max() <= PIXEL_TOLERANCE
    assert np.array_equal(painted[~inside], original[~inside])
    assert not np.array_equal(theirs[~inside], original[~inside])
    assert np.abs(painted - original)[inside].mean() > 2


def test_nothing_to_paint_hands_the_picture_back(pipeline: QwenImageEdit, row: PipelineSpec) -> None:
    """A black mask."""
    request = masked(row, lambda across, down: across < 0)
    assert edit(pipeline, request).image.pixels == request.images[0].pixels


def test_everything_to_paint_is_an_edit_without_a_mask(pipeline: QwenImageEdit, row: PipelineSpec) -> None:
    """A white mask; bit by bit, so the same seed starts from the same noise."""
    request = masked(row, lambda across, down: across >= 0)
    assert edit(pipeline, request) == edit(pipeline, replace(request, mask=None))


def test_the_mask_is_of_the_first_of_several_pictures(pipeline: QwenImageEdit, row: PipelineSpec) -> None:
    """The others are references; the canvas has the first one's aspect."""
    first = picture(1, 160, 120)
    request = ask(row, images=(first, picture(2, 60, 100)), mask=mask(left, 160, 120), width=None, height=120)
    assert (request.size, request.canvas) == ((160, 120), (160, 128))
    kept = pixels(edit(pipeline, request))[:, 88:]
    fitted = pillow.frombytes("RGB", first.size, first.pixels).resize(
        request.canvas, pillow.Resampling.LANCZOS
    )
    assert np.array_equal(kept, np.asarray(fitted)[:, 88:])


def test_references_may_have_another_size_than_the_canvas(pipeline: QwenImageEdit, row: PipelineSpec) -> None:
    """Upstream has one size for both; here the latents that are kept are of the canvas's own encoding."""
    request = masked(row, left, width=128, height=128)
    assert request.reference_sizes != (request.canvas,)
    state = run(pipeline, request)
    assert state.region is not None
    kept = ~state.region.painted
    assert torch.equal(state.latents[kept], state.region.picture[kept])
    assert float((state.latents - state.region.picture)[~kept].abs().mean()) > 0.1
    unmasked = run(pipeline, replace(request, mask=None))
    assert float((state.latents - unmasked.latents)[kept].abs().max()) > 0.1


@pytest.mark.parametrize("ticks", [(0, 0, 0), (0, 1, 3)], ids=str)
def test_masked_and_unmasked_rows_share_a_forward(
    ticks: tuple[int, ...], pipeline: QwenImageEdit, row: PipelineSpec
) -> None:
    """With masks and step counts of their own; the mask is no part of the batch key."""
    requests = [
        masked(row, disc),
        masked(row, left, seed=5, steps=7, prompt="remove the tree"),
        replace(masked(row, seed=6), mask=None),
    ]
    for state, request in zip(run_joining(pipeline, requests, ticks), requests, strict=True):
        assert float((state.latents - run(pipeline, request).latents).abs().max()) < LATENT_TOLERANCE


def test_a_picture_of_the_canvas_size_is_encoded_once(parts: Components, row: PipelineSpec) -> None:
    """It is the reference and what is kept, by one key."""
    cached = QwenImageEdit(parts, NUMBERED_PICTURES, cache_bytes=2**26)
    cached.prepare([masked(row), masked(row, left, id="another", seed=2)])
    assert cached.caches["reference_latents"]["misses"] == 1
    assert edit(cached, masked(row)) != edit(cached, masked(row, left))
