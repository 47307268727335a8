"""Every scheme on the whole pipeline: the pictures stay what they were, and rows stay apart.

On a CPU fp8 activations cannot be multiplied, so torchao's fp8 is held to its weights here.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from bitsandbytes.autograd._functions import MatMul8bitLt
from torch import nn

from core.errors import CapacityError
from core.request import InferenceRequest
from core.spec import PipelineSpec
from pipelines.int8_linear import Int8Linear
from pipelines.options import ModelOptions, Precision, Silent
from pipelines.pocket.drawing import redraw
from pipelines.precision import Role, Scheme
from pipelines.quantization import SKIPPED, quantize
from pipelines.qwen_image import QwenImageEdit, load_edit_plus
from pipelines.qwen_loading import Components
from pipelines.qwen_text import NUMBERED_PICTURES
from pipelines.registry import catalog
from tests.pipelines.edits import ask, edit, pixels, run_to_end
from tests.pipelines.test_pocket_edits import EXACT, Pixels, as_array, scene

Skipped = Mapping[Role, tuple[str, ...]]

CPU = torch.device("cpu")
EVERYTHING: Skipped = {"denoiser": (), "text": ("visual",), "vae": ()}
# Least decibels between a picture and the same in fp32; measured on the four edits below: bf16 50.2.
NEAR: dict[Scheme, float] = {
    "bitsandbytes-int8": 45,  # 50.9
    "torchao-int8": 45,  # 50.9
    "torchao-int8-weights": 48,  # 53.7
    "torchao-fp8-weights": 38,  # 44.3
    "fp8-layerwise": 36,  # 42.1
    "bitsandbytes-nf4": 30,  # 32.4
}
EIGHT_BIT = [scheme for scheme in NEAR if scheme != "bitsandbytes-nf4"]
# Rounding falls the other way where a sum of another batch differs in its last place: in few pixels.
ALONE_AND_BATCHED = 50.0
WORDS = (
    "make this photo black and white",
    "flip it left to right",
    "invert the colours",
    "please make it brighter",
)


def quantized(parts: Components, scheme: Scheme, skipped: Skipped = SKIPPED) -> Components:
    models: dict[Role, nn.Module] = {
        "denoiser": copy.deepcopy(parts.transformer),
        "text": copy.deepcopy(parts.text_encoder),
    }
    for role, model in models.items():
        quantize(model, role, scheme, compute=torch.float32, device=CPU, skipped=skipped)
    return replace(parts, transformer=models["denoiser"], text_encoder=models["text"])


def pipeline_of(parts: Components) -> QwenImageEdit:
    return QwenImageEdit(parts, NUMBERED_PICTURES, cache_bytes=0)


@pytest.fixture(scope="module")
def served() -> PipelineSpec:
    """The row at the reference size that it was trained for."""
    return catalog("pocket-edit").default


@pytest.fixture(scope="module")
def requests(served: PipelineSpec) -> list[InferenceRequest]:
    return [ask(served, i, prompt=words, width=96, height=96) for i, words in enumerate(WORDS)]


@pytest.fixture(scope="module")
def whole(pipeline: QwenImageEdit, requests: list[InferenceRequest]) -> list[Pixels]:
    return pictures(pipeline, requests)


def pictures(pipeline: QwenImageEdit, requests: Sequence[InferenceRequest]) -> list[Pixels]:
    return [pixels(edit(pipeline, request)) for request in requests]


def decibels(one: Pixels, other: Pixels) -> float:
    error = float(np.mean((one.astype(float) - other) ** 2))
    return 10 * math.log10(255**2 / max(1e-9, error))


def least(ones: Sequence[Pixels], others: Sequence[Pixels]) -> float:
    return min(decibels(one, other) for one, other in zip(ones, others, strict=True))


@pytest.mark.parametrize("scheme", NEAR)
def test_pictures_stay_and_rows_stay_apart(
    scheme: Scheme, parts: Components, requests: list[InferenceRequest], whole: list[Pixels]
) -> None:
    """Each picture is near to that of the whole weights, alone and beside three others."""
    pipeline = pipeline_of(quantized(parts, scheme))
    alone = pictures(pipeline, requests)
    assert NEAR[scheme] <= least(whole, alone) < 60, "near, but not the same: something was rounded"
    states = pipeline.prepare(requests)
    run_to_end(pipeline, states)
    assert least(alone, [pixels(result) for result in pipeline.decode(states)]) >= ALONE_AND_BATCHED


def test_wrong_weights_are_far_off(
    parts: Components, requests: list[InferenceRequest], whole: list[Pixels]
) -> None:
    """The measure can fail: weights of the same sizes that were never trained give other pictures."""
    transformer = copy.deepcopy(parts.transformer)
    redraw(transformer, torch.float32)
    assert least(whole, pictures(pipeline_of(replace(parts, transformer=transformer)), requests)) < 20


def test_the_skipped_layers_earn_their_place(
    parts: Components, requests: list[InferenceRequest], whole: list[Pixels]
) -> None:
    """Quantizing all of them too costs decibels."""
    kept, spent = (
        pictures(pipeline_of(quantized(parts, "bitsandbytes-nf4", skipped)), requests)
        for skipped in (SKIPPED, EVERYTHING)
    )
    mean = [np.mean([decibels(a, b) for a, b in zip(whole, got, strict=True)]) for got in (kept, spent)]
    assert mean[0] > mean[1] + 0.5


@pytest.fixture(scope="module")
def quality_of_bf16(bf16_pipeline: QwenImageEdit, served: PipelineSpec) -> float:
    return quality(bf16_pipeline, served)


def quality(pipeline: QwenImageEdit, served: PipelineSpec) -> float:
    """Mean decibels against what the words exactly ask for."""
    return float(np.mean([decibels(EXACT[words](), drawn(pipeline, served, words)) for words in EXACT]))


def drawn(pipeline: QwenImageEdit, served: PipelineSpec, words: str) -> Pixels:
    return pixels(edit(pipeline, ask(served, prompt=words, images=(scene(),), width=128, height=128)))


@pytest.mark.parametrize("scheme", EIGHT_BIT)
def test_8bit_edits_as_well_as_bf16(
    scheme: Scheme, parts: Components, served: PipelineSpec, quality_of_bf16: float
) -> None:
    """Within half a decibel against the exact operation."""
    assert quality(pipeline_of(quantized(parts, scheme)), served) >= quality_of_bf16 - 0.5


def test_four_bits_of_everything_do_not(
    parts: Components, served: PipelineSpec, quality_of_bf16: float
) -> None:
    """The half decibel can be missed."""
    coarse = pipeline_of(quantized(parts, "bitsandbytes-nf4", EVERYTHING))
    assert quality(coarse, served) < quality_of_bf16 - 0.5


def test_that_quality_is_of_the_edit(served: PipelineSpec, quality_of_bf16: float) -> None:
    """The input itself is far worse: otherwise half a decibel would mean nothing."""
    unedited = np.mean([decibels(exact(), as_array(scene())) for exact in EXACT.values()])
    assert quality_of_bf16 > unedited + 3


def layer(outlier: float = 1.0) -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    rows = torch.randn(6, 256)
    rows[2, 17] = outlier
    return nn.Linear(256, 128).requires_grad_(False), rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_activation_beyond_fp16_stays_finite_and_moves_no_other_row(dtype: torch.dtype) -> None:
    """Transformers of this family have such; upstream's product makes them infinite."""
    linear, rows = layer(1e5)
    rows = rows.to(dtype)
    small = Int8Linear.of(copy.deepcopy(linear).to(dtype), CPU)
    answer = small(rows)
    exact = linear(rows.float())
    assert answer.dtype == dtype
    assert torch.isfinite(answer).all()
    assert (answer[2].float() - exact[2]).norm() < 0.03 * exact[2].norm()
    _, calm = layer()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(answer[others], small(calm.to(dtype))[others])
    assert torch.equal(answer[3:4], small(rows[3:4]))
    upstream = MatMul8bitLt.apply(rows, small.weight, None, None, small.state)
    assert not torch.isfinite(upstream).all()


def test_upstreams_outlier_columns_would_couple_rows() -> None:
    """Why the threshold is 0: at bitsandbytes' usual 6 a neighbour's outlier changes every row."""
    linear, rows = layer(50.0)
    state = Int8Linear.of(linear, CPU).state
    state.threshold = 6.0
    beside, alone = (MatMul8bitLt.apply(part.half(), None, None, None, state) for part in (rows, rows[3:4]))
    assert not torch.equal(beside[3:4], alone)


def test_modulations_keep_their_activations(parts: Components) -> None:
    """They see a vector for each row, and a GPU multiplies int8 from 17 rows on."""
    transformer = quantized(parts, "torchao-int8").transformer
    rounded = {
        name: weight.act_quant_kwargs is not None
        for name, weight in transformer.named_parameters()
        if hasattr(weight, "act_quant_kwargs")
    }
    assert rounded["transformer_blocks.1.attn.to_q.weight"]
    assert not rounded["transformer_blocks.1.img_mod.1.weight"]
    assert not rounded["transformer_blocks.0.txt_mod.1.weight"]
    assert "transformer_blocks.0.img_mod.1.weight" not in rounded
    assert not any(name.startswith(("proj_out", "img_in", "txt_in", "time_text_embed")) for name in rounded)


@pytest.mark.parametrize(
    ("precision", "kind"),
    [
        (Precision(mode="8bit", eight_bit="bitsandbytes"), Int8Linear),
        (Precision(mode="4bit"), bnb.nn.Linear4bit),
        (Precision(mode="8bit", eight_bit="torchao-fp8", components="transformer"), nn.Linear),
    ],
)
def test_a_load_quantizes_what_it_was_told_to(
    precision: Precision, kind: type, spec: PipelineSpec, options: ModelOptions
) -> None:
    """From the operator's words to the layers; the sentence is there for whoever asks."""
    loaded = load_edit_plus(spec, replace(options, precision=precision), Silent())
    transformer, text_encoder = loaded._parts.transformer, loaded._parts.text_encoder
    assert type(transformer.transformer_blocks[1].attn.to_q) is kind
    assert type(text_encoder.model.language_model.layers[0].mlp.up_proj) is kind
    assert type(text_encoder.model.visual.blocks[0].mlp.up_proj) is nn.Linear
    assert type(transformer.proj_out) is nn.Linear
    assert precision.mode in loaded.precision
    assert getattr(transformer, "is_loaded_in_8bit", False) == (kind is Int8Linear), "peft asks for it"
    assert edit(loaded, ask(spec)).image.size == (64, 64)


def test_a_model_without_layers_to_quantize_is_refused() -> None:
    """Otherwise 8bit would be reported and nothing saved."""
    with pytest.raises(CapacityError, match="PRECISION_MODE=bf16") as caught:
        quantize(
            nn.ModuleDict({"proj_out": nn.Linear(8, 8)}),
            "denoiser",
            "fp8-layerwise",
            compute=torch.float32,
            device=CPU,
        )
    assert not caught.value.retryable


@pytest.mark.parametrize("inputs", [32, 64, 128])
def test_four_bit_products_are_whole_on_every_cpu(inputs: int) -> None:
    """Some CPUs have a kernel that rounds to bf16, and that fails on rows of less than a block of 64."""
    layer = nn.Linear(inputs, 64)
    model = nn.ModuleDict({"narrow": layer})
    rows = torch.randn(3, inputs, generator=torch.Generator().manual_seed(0))
    quantize(model, "text", "bitsandbytes-nf4", compute=torch.float32, device=CPU)
    small: Any = model["narrow"]
    weight = bnb.functional.dequantize_4bit(small.weight.data, small.weight.quant_state)
    with torch.inference_mode():
        torch.testing.assert_close(small(rows), nn.functional.linear(rows, weight, layer.bias))
