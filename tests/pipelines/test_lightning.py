"""A row of few steps has its LoRA in its weights, all of it, or it is not served."""

import copy
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_pipeline import QwenImageLoraLoaderMixin
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from core.errors import CapacityError
from core.spec import PipelineSpec
from pipelines.beside import find_lightning
from pipelines.lightning import few_step_solver, fuse
from pipelines.lightning_files import lightning_source, lightning_steps
from pipelines.lora_files import find
from pipelines.lora_layers import adapted
from pipelines.options import Lightning, ModelOptions, Silent
from pipelines.pocket.architecture import SOLVER
from pipelines.qwen_image import QwenImageEdit, load_edit_plus
from pipelines.qwen_loading import Components, load_components
from pipelines.qwen_text import NUMBERED_PICTURES
from pipelines.registry import SPECS, catalog
from tests.pipelines import loras
from tests.pipelines.edits import ask, edit, pixels

PLUS = "QwenImageEditPlusPipeline"
# Weights reach 1, of which bf16 knows one part in 256.
TOLERANCE = 1e-6
BF16_TOLERANCE = 2**-8
BLOCKS = "transformer_blocks"
EVERYTHING = frozenset(spec.name for spec in SPECS)


@pytest.fixture
def pairs(parts: Components) -> loras.Pairs:
    return loras.pairs_for(parts.transformer, where=BLOCKS)


@pytest.fixture
def file(tmp_path: Path, pairs: loras.Pairs) -> Path:
    return loras.written(tmp_path / "lightning-4steps.safetensors", pairs, "lightx2v")


@pytest.fixture
def few_steps(spec: PipelineSpec, file: Path) -> PipelineSpec:
    """The pocket row with the file of this test as its own."""
    return replace(spec, lightning_lora=str(file), lightning_steps=4)


def farthest(one: Any, other: Any) -> float:
    """The largest difference of any weight."""
    weights = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return max(float((a - b).abs().max()) for (name, a), (other_name, b) in weights if name == other_name)


@pytest.mark.parametrize("layout", loras.LAYOUTS)
def test_the_weights_are_those_of_a_merge_by_hand(
    layout: str, parts: Components, pairs: loras.Pairs, tmp_path: Path
) -> None:
    """In every layout, and no layer is left wrapped."""
    fused = copy.deepcopy(parts.transformer)
    fuse(fused, find(str(loras.written(tmp_path / "a.safetensors", pairs, layout)), ModelOptions()))
    scale = loras.LAYOUTS[layout][1]
    assert farthest(fused, loras.merge(copy.deepcopy(parts.transformer), pairs, scale)) < TOLERANCE
    assert farthest(fused, loras.merge(copy.deepcopy(parts.transformer), pairs, scale * 1.01)) > TOLERANCE
    assert [type(m) for m in fused.modules()] == [type(m) for m in parts.transformer.modules()]


def test_they_are_those_that_diffusers_fuses(parts: Components, file: Path) -> None:
    """Its own loader, fusing and unloading give the same weights, in bf16 too."""
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = (copy.deepcopy(parts.transformer).to(dtype) for _ in range(2))
        fuse(ours, find(str(file), ModelOptions()))
        state = QwenImageLoraLoaderMixin.lora_state_dict(load_file(file))
        QwenImageLoraLoaderMixin.load_lora_into_transformer(state, theirs)
        theirs.fuse_lora()
        theirs.unload_lora()
        assert farthest(ours.float(), theirs.float()) <= (
            TOLERANCE if dtype == torch.float32 else BF16_TOLERANCE
        )


def test_a_loaded_row_has_it_and_says_so(few_steps: PipelineSpec, options: ModelOptions) -> None:
    """In health and in every answer; without it neither claims it, and the picture is another."""
    pipeline = load_edit_plus(few_steps, options, Silent())
    plain = load_edit_plus(replace(few_steps, lightning_lora=None, lightning_steps=None), options, Silent())
    answer, other = edit(pipeline, ask(few_steps)), edit(plain, ask(few_steps))
    assert (pipeline.lightning_enabled, answer.lightning_enabled) == (True, True)
    assert (plain.lightning_enabled, other.lightning_enabled) == (False, False)
    assert abs(pixels(answer) - pixels(other)).mean() > 1


def test_a_loaded_row_has_the_schedule_of_its_file(few_steps: PipelineSpec, options: ModelOptions) -> None:
    """Four steps of the full model's schedule would end in noise."""
    parts = load_components(few_steps, options, Silent(), pipeline_class=PLUS)
    (state,) = QwenImageEdit(parts, NUMBERED_PICTURES, 0).prepare([ask(few_steps, width=256, height=256)])
    # sigma' = 3 sigma / (1 + 2 sigma) whatever the size, ending at 0.
    shifted = [3 * s / (1 + 2 * s) for s in (1, 0.75, 0.5, 0.25)]
    assert [t / 1000 for t in state.schedule.timesteps] == pytest.approx(shifted, abs=1e-6)
    assert sum(state.schedule.deltas) == pytest.approx(-1, abs=1e-6)


def test_the_schedule_is_the_model_cards() -> None:
    """What the file does not speak of stays the checkpoint's."""
    config = few_step_solver(FlowMatchEulerDiscreteScheduler(**SOLVER | {"use_karras_sigmas": False})).config
    assert config.base_shift == config.max_shift == math.log(3)
    assert (config.shift, config.shift_terminal, config.max_image_seq_len) == (1.0, None, 8192)
    assert (config.use_dynamic_shifting, config.time_shift_type) == (True, "exponential")
    assert not config.use_karras_sigmas


def test_a_layer_that_is_not_there_stops_the_load(
    few_steps: PipelineSpec, options: ModelOptions, pairs: loras.Pairs, tmp_path: Path
) -> None:
    """Half of it paints noise; the operator hears it at the start and not from a user."""
    more = pairs | {f"{BLOCKS}.99.attn.to_q": next(iter(pairs.values()))}
    broken = replace(few_steps, lightning_lora=str(loras.written(tmp_path / "b.safetensors", more)))
    with pytest.raises(CapacityError, match="this one has no such layers") as caught:
        load_components(broken, options, Silent(), pipeline_class=PLUS)
    assert (caught.value.code, caught.value.retryable) == ("not_ready", False)


def test_fusing_is_all_or_an_error(parts: Components, file: Path) -> None:
    """A layer that takes no part is counted, whoever dropped it."""
    model = copy.deepcopy(parts.transformer)
    model.set_submodule(f"{BLOCKS}.0.attn.to_q", torch.nn.Identity())
    with pytest.raises(CapacityError, match="cannot be used"):
        fuse(model, find(str(file), ModelOptions()))
    assert not adapted(model)


def test_a_file_that_cannot_be_had_names_the_ways_out(spec: PipelineSpec, options: ModelOptions) -> None:
    """Before the weights are read, which takes minutes. A row made by its LoRA has no form without it."""
    offline = replace(options, local_only=True)
    made_by_it = replace(spec, lightning_lora="batchmux-tests/none/a.safetensors", lightning_steps=4)
    with pytest.raises(CapacityError, match="LORA_DIR, or choose another model") as caught:
        load_components(made_by_it, offline, Silent(), pipeline_class=PLUS)
    assert caught.value.code == "not_ready"
    with pytest.raises(CapacityError, match="LORA_DIR, or set USE_LIGHTNING_LORA=0"):
        find_lightning(catalog("qwen-image-edit", lightning={"enabled": True}).default, offline)


def test_a_baked_in_file_is_found_by_its_name(
    few_steps: PipelineSpec, options: ModelOptions, file: Path
) -> None:
    """LORA_DIR holds the files of images without a network."""
    row = replace(few_steps, lightning_lora=f"nobody/nothing/{file.name}")
    offline = replace(options, local_only=True, lightning=Lightning(folder=file.parent))
    assert load_components(row, offline, Silent(), pipeline_class=PLUS).lightning


@pytest.mark.parametrize("wanted", [None, 4, 8])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_rows_defaults_follow_its_file(spec: PipelineSpec, wanted: int | None) -> None:
    """Forty steps and guidance would spoil what four paint, and cost twenty times as much."""
    rows = catalog(spec.name, lightning={"enabled": True, "steps": wanted})
    steps = lightning_steps(spec.name, wanted)
    if steps is None:
        assert rows.default == replace(spec, max_adapters=rows.default.max_adapters)
    else:
        assert (rows.default.steps, rows.default.cfg, rows.default.lightning_steps) == (steps, 1.0, steps)
        source = lightning_source(spec.name, steps)
        assert source is not None
        assert f"{steps}steps" in source
        assert source.endswith(".safetensors")
        assert source.count("/") >= 2 or source.startswith("builtin:")


def test_which_rows_have_a_file() -> None:
    """The published ones; a row that gains or loses one is noticed."""
    known = {
        name: {steps for steps in range(1, 101) if lightning_source(name, steps)}
        for name in (*EVERYTHING, "qwen-image", "qwen-image-2512")
    }
    assert {name: steps for name, steps in known.items() if steps} == {
        "qwen-image": {4, 8},
        "qwen-image-2512": {4, 8},
        "qwen-image-edit": {4, 8},
        "qwen-image-edit-2509": {4, 8},
        "qwen-image-edit-2511": {4, 8},
        "pocket-edit": {4},
        "firered-image-edit-1.0": {8},
        "firered-image-edit-1.1": {8},
    }


def test_the_operators_figures_come_after_it() -> None:
    """DEFAULT_STEPS is a wish about this model, whatever form it is in."""
    on = {"enabled": True, "steps": None}
    row = catalog("qwen-image-edit-2509", lightning=on, steps=6, cfg=1.5).default
    assert (row.steps, row.cfg, row.lightning_steps) == (6, 1.5, 8)


def test_steps_without_a_file_turn_it_off_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    """LIGHTNING_STEPS=4 for a row that has eight alone: it runs in full, which is slow but right."""
    with caplog.at_level(logging.WARNING):
        row = catalog("firered-image-edit-1.0", lightning={"enabled": True, "steps": 4}).default
    assert (row.steps, row.cfg, row.lightning_steps) == (40, 4.0, None)
    assert [record.getMessage() for record in caplog.records] == [
        "firered-image-edit-1.0 has no Lightning LoRA of 4 steps and runs without; set 8"
    ]
