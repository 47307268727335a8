"""Pictures of a text alone: what the stock QwenImagePipeline gives, through the same loop as edits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline

from core.errors import CapacityError, RequestError
from core.request import InferenceRequest, Task
from core.spec import PipelineSpec
from pipelines.checkpoint import find_checkpoint
from pipelines.options import ModelOptions, Silent
from pipelines.pocket.vocabulary import CONTROL_TOKENS
from pipelines.qwen_image import QwenImageEdit, load_generate
from pipelines.qwen_loading import load_components
from pipelines.qwen_text import NUMBERED_PICTURES, TEXT_ALONE
from pipelines.registry import SPECS, catalog
from tests.pipelines.edits import PROMPTS, edit, picture, pixels, run_to_end

LATENT_TOLERANCE = 5e-5  # latents reach 5
PIXEL_TOLERANCE = 1


@pytest.fixture(scope="module")
def row() -> PipelineSpec:
    return catalog("pocket-image").default


@pytest.fixture(scope="module")
def painter(row: PipelineSpec, options: ModelOptions) -> QwenImageEdit:
    return load_generate(row, options, Silent())


@pytest.fixture(scope="module")
def folder(row: PipelineSpec, options: ModelOptions) -> Path:
    return find_checkpoint(row, options)


@pytest.fixture(scope="module")
def stock(folder: Path) -> Any:
    pipeline = QwenImagePipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ask(row: PipelineSpec, number: int = 0, **wishes: Any) -> InferenceRequest:
    defaults: dict[str, Any] = {
        "id": f"picture-{number}",
        "task": Task.GENERATE,
        "prompt": PROMPTS[number],
        "width": 64,
        "height": 64,
        "seed": 100 + number,
    }
    return row.request(**(defaults | wishes))


def latents(ours: QwenImageEdit, request: InferenceRequest) -> torch.Tensor:
    states = ours.prepare([request])
    run_to_end(ours, states)
    return states[0].latents


def run_stock(stock: Any, request: InferenceRequest, output_type: str = "latent") -> Any:
    return stock(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt if request.guided else None,
        true_cfg_scale=request.cfg,
        num_inference_steps=request.steps,
        width=request.canvas[0],
        height=request.canvas[1],
        generator=torch.Generator("cpu").manual_seed(request.seed),
        max_sequence_length=1024,  # upstream's default of 512 cuts the last case below
        output_type=output_type,
    ).images[0]


def error(stock: Any, ours: QwenImageEdit, request: InferenceRequest) -> float:
    return float((run_stock(stock, request) - latents(ours, request)).abs().max())


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "guided": {"cfg": 4.0, "negative_prompt": "dark, blurry"},
    "guided away from nothing": {"cfg": 4.0},
    "wide canvas, nine steps": {"width": 160, "height": 64, "steps": 9},
    "other letters": {"prompt": "天空变成红色 🌅 naïve façade"},
    "a text longer than upstream's default": {"prompt": "make it red, " * 60 + "blue " * 500},
}


@pytest.mark.parametrize("case", CASES)
def test_a_lone_picture_equals_the_stock_pipelines(
    case: str, stock: Any, painter: QwenImageEdit, row: PipelineSpec
) -> None:
    """The latents show errors that rounding to pixels would hide."""
    request = ask(replace(row, max_prompt_chars=4000), 1, **CASES[case])
    assert error(stock, painter, request) < LATENT_TOLERANCE


def test_pixels_equal_those_of_the_stock_pipeline(
    stock: Any, painter: QwenImageEdit, row: PipelineSpec
) -> None:
    """Decoding is shared with edits, and must hold without one."""
    request = ask(row, cfg=3.0, width=96)
    theirs = np.asarray(run_stock(stock, request, "pil"), np.int16)
    ours = pixels(edit(painter, request))
    assert ours.std() > 10  # a flat picture would equal anything
    assert np.abs(ours - theirs).max() <= PIXEL_TOLERANCE


@pytest.mark.parametrize(
    "fault",
    [
        {"dropped": TEXT_ALONE.dropped - 1},
        {"dropped": NUMBERED_PICTURES.dropped},
        {"head": TEXT_ALONE.head.replace("quantity, ", "")},
    ],
    ids=["a token too many", "as many dropped as for edits", "another wording"],
)
def test_another_template_is_seen(
    fault: dict[str, Any], stock: Any, folder: Path, row: PipelineSpec, options: ModelOptions
) -> None:
    """Control: each of these runs, and paints something that upstream would not."""
    parts = load_components(row, options, Silent(), pipeline_class="QwenImagePipeline", sees_pictures=False)
    ours = QwenImageEdit(parts, replace(TEXT_ALONE, **fault), cache_bytes=0)
    assert error(stock, ours, ask(row, 1)) > 100 * LATENT_TOLERANCE


def test_texts_of_unequal_length_share_a_call(painter: QwenImageEdit, row: PipelineSpec) -> None:
    """The shorter is padded, which nothing of it may see."""
    requests = [ask(row, i, cfg=4.0, negative_prompt="rain " * i) for i in range(4)]
    together = painter.prepare(requests)
    assert len({len(state.prompt) for state in together}) > 1
    for state, request in zip(together, requests, strict=True):
        (alone,) = painter.prepare([request])
        assert alone.negative is not None
        assert state.negative is not None
        assert float((state.prompt - alone.prompt).abs().max()) < 1e-5
        assert float((state.negative - alone.negative).abs().max()) < 1e-5


@pytest.mark.parametrize(
    "change",
    [{"prompt": PROMPTS[1]}, {"seed": 7}, {"cfg": 2.0}, {"negative_prompt": "turn this into a sketch"}],
    ids=lambda change: " ".join(change),
)
def test_every_wish_shows_in_the_picture(
    change: dict[str, Any], painter: QwenImageEdit, row: PipelineSpec
) -> None:
    """Comparisons of pictures mean something only when the pictures differ where they should."""
    base: dict[str, Any] = {"cfg": 12.0, "negative_prompt": "blurry"}
    before, after = (edit(painter, ask(row, **(base | more))) for more in ({}, change))
    assert np.abs(pixels(before) - pixels(after)).max() > 20


def test_no_negative_prompt_is_the_trained_blank(painter: QwenImageEdit, row: PipelineSpec) -> None:
    """The family has no embedding of no text; the model card guides away from a space."""
    blank = ask(row, cfg=4.0)
    for negative in (None, ""):
        assert edit(painter, replace(blank, negative_prompt=negative)) == edit(painter, blank)


@pytest.mark.parametrize("token", CONTROL_TOKENS)
def test_control_tokens_in_a_prompt_are_plain_words(
    token: str, painter: QwenImageEdit, row: PipelineSpec
) -> None:
    """Live, each would be one token, and could end the user's turn."""
    plain, marked = painter.prepare(
        [ask(row, prompt=f"a sign {word}that says") for word in ("", f"{token} ")]
    )
    assert len(marked.prompt) - len(plain.prompt) >= 4


def test_a_picture_to_edit_is_refused(row: PipelineSpec) -> None:
    """The model would never see it."""
    with pytest.raises(RequestError, match="leave images out"):
        ask(row, images=(picture(0),))


def test_a_checkpoint_of_an_editor_is_refused(row: PipelineSpec, checkpoint: Path) -> None:
    """It would load and paint, under a template it was not trained with."""
    with pytest.raises(CapacityError, match="needs a QwenImagePipeline"):
        load_generate(row, ModelOptions(model_dir=checkpoint), Silent())


def test_the_checkpoint_has_no_processor(folder: Path) -> None:
    """As on the hub: reading one would fail there."""
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        *("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
    ]


@pytest.mark.parametrize("name", ["Qwen/Qwen-Image", "qwen-image-2512"])
def test_the_full_models_make_the_size_that_their_card_recommends(name: str) -> None:
    """1328 x 1328 is no multiple of 32, to which edits are rounded."""
    spec = catalog(name, allowed=frozenset(spec.name for spec in SPECS)).default
    request = spec.request(id="r", task=Task.GENERATE, prompt="a harbour")
    assert (request.size, request.canvas) == ((1328, 1328), (1328, 1328))
    assert (request.steps, request.cfg, request.negative_prompt) == (50, 4.0, " ")
