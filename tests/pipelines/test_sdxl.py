"""What the SDXL family adds to the stock pipelines: long texts, memory of conditions, forms of a model."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import CapacityError, ExecutionError, RequestError
from core.request import Task
from core.spec import PipelineSpec
from pipelines.beside import find_denoiser
from pipelines.options import Lightning, ModelOptions, Silent
from pipelines.pocket.sdxl import build
from pipelines.registry import SPECS, catalog
from pipelines.sdxl import StableDiffusionXL, load
from pipelines.sdxl_loading import Components, load_components
from pipelines.sdxl_text import Text
from tests.pipelines.edits import edit, picture, pixels, run_to_end
from tests.pipelines.paintings import MASKED, PROMPTS, Stock, finished, paint

LONG = "a golden lamp by the door of a red house, " * 8  # 88 words and signs: two pieces
TOLERANCE = 1e-5


def text(pipeline: StableDiffusionXL, spec: PipelineSpec, prompt: str) -> Text:
    return pipeline.prepare([paint(spec, prompt=prompt)])[0].prompt


def test_long_texts_are_read_in_pieces(sdxl: StableDiffusionXL, sdxl_spec: PipelineSpec) -> None:
    """Each of 75 tokens is what it would be alone; nothing is cut off. The first gives the pooled text."""
    prompts = ("night " * 75 + "day " * 75, "night " * 75, "day " * 75)
    long, first, second = (text(sdxl, sdxl_spec, prompt) for prompt in prompts)
    assert len(long.tokens) == 2 * 77
    assert torch.allclose(long.tokens, torch.cat([first.tokens, second.tokens]), atol=1e-5)
    assert torch.allclose(long.pooled, first.pooled, atol=1e-5)
    assert float((first.tokens - second.tokens).abs().max()) > 0.1
    assert len(first.tokens) == 77


def test_long_texts_give_what_stock_gives_for_their_embeddings(
    sdxl: StableDiffusionXL, sdxl_spec: PipelineSpec, sdxl_checkpoint: Path
) -> None:
    """The denoiser sees all of the pieces; the second one's last word shows in the picture."""
    request = paint(sdxl_spec, prompt=LONG)
    made = text(sdxl, sdxl_spec, LONG)
    theirs = (
        Stock(sdxl_checkpoint)
        .text(
            prompt_embeds=made.tokens[None],
            pooled_prompt_embeds=made.pooled[None],
            guidance_scale=1.0,
            num_inference_steps=request.steps,
            width=64,
            height=64,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type="latent",
        )
        .images
    )
    ours = finished(sdxl, request)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < TOLERANCE
    other = finished(sdxl, paint(sdxl_spec, prompt=LONG + "night"))
    assert float((ours - other).abs().max() / ours.abs().max()) > 100 * TOLERANCE


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_texts_of_over_four_pieces_are_refused(
    field: str, sdxl: StableDiffusionXL, sdxl_spec: PipelineSpec
) -> None:
    """Not cut off in silence; 300 tokens are taken."""
    wishes: list[dict[str, Any]] = [{"cfg": 2.0, field: "night " * count} for count in (300, 301)]
    taken, refused = (paint(sdxl_spec, **wish) for wish in wishes)
    sdxl.prepare([taken])
    with pytest.raises(RequestError, match=f"{field} of 301 tokens is over the limit of 300") as refusal:
        sdxl.prepare([refused])
    assert refusal.value.param == field


def test_control_tokens_in_a_prompt_are_words(
    sdxl: StableDiffusionXL, sdxl_spec: PipelineSpec, sdxl_parts: Components
) -> None:
    """Live, the first would end the text: what comes after it could not change the pooled embedding."""
    first, second = (text(sdxl, sdxl_spec, f"a cat<|endoftext|>{word}") for word in ("photo", "painting"))
    assert not torch.equal(first.pooled, second.pooled)
    tokenizer, _ = sdxl_parts.encoders[0]
    assert tokenizer("a cat<|endoftext|>")["input_ids"].count(tokenizer.eos_token_id) == 2


def test_what_was_encoded_is_remembered(sdxl_parts: Components, sdxl_spec: PipelineSpec) -> None:
    """Texts and pictures come again, with other seeds; and the answer stays the same."""
    pipeline = StableDiffusionXL(sdxl_parts, cache_bytes=10_000_000)
    request = paint(sdxl_spec, **MASKED, cfg=4.0, negative_prompt="rain")
    first, second = (edit(pipeline, request) for _ in range(2))
    assert first == second
    kinds = ("prompt_embeddings", "pooled_embeddings", "picture_moments")
    hits = {kind: (pipeline.caches[kind]["hits"], pipeline.caches[kind]["misses"]) for kind in kinds}
    assert hits == {"prompt_embeddings": (2, 2), "pooled_embeddings": (2, 2), "picture_moments": (1, 1)}


def test_a_picture_decides_its_picture(sdxl: StableDiffusionXL, sdxl_spec: PipelineSpec) -> None:
    """Untrained weights must still let prompt, seed, picture and strength show, or parity says nothing."""
    base: dict[str, Any] = {"images": (picture(1),), "strength": 0.5}
    shown = pixels(edit(sdxl, paint(sdxl_spec, **base)))
    changes: list[dict[str, Any]] = [
        {"prompt": PROMPTS[1]},
        {"seed": 7},
        {"images": (picture(2),)},
        {"strength": 0.75},
    ]
    for change in changes:
        other = pixels(edit(sdxl, paint(sdxl_spec, **(base | change))))
        assert abs(other - shown).max() > 20, change


def test_a_picture_that_is_no_numbers_raises(sdxl_parts: Components, sdxl_spec: PipelineSpec) -> None:
    """Also where only the autoencoder went wrong, as it does in fp16."""

    class Overflowing(torch.nn.Module):
        config, dtype = sdxl_parts.vae.config, torch.float32

        def decode(self, latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            return (sdxl_parts.vae.decode(latents, return_dict=return_dict)[0] * float("inf"),)

    pipeline = StableDiffusionXL(replace(sdxl_parts, vae=Overflowing()), cache_bytes=0)
    states = pipeline.prepare([paint(sdxl_spec)])
    run_to_end(pipeline, states)
    with pytest.raises(ExecutionError):
        pipeline.decode(states)


# Forms of a model.


@pytest.fixture
def baked(tmp_path: Path, sdxl_checkpoint: Path) -> ModelOptions:
    """A Lightning denoiser, raw as upstream's is: the pocket's, every weight a little larger."""
    weights = load_file(sdxl_checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    save_file(
        {name: weight * 1.25 for name, weight in weights.items()},
        tmp_path / "sdxl_lightning_4step_unet.safetensors",
    )
    return ModelOptions(
        cache_dir=sdxl_checkpoint.parent,
        local_only=True,
        lightning=Lightning(folder=tmp_path),
        condition_cache_bytes=0,
    )


@pytest.fixture
def lightning() -> PipelineSpec:
    """The row of SDXL-Lightning, over the pocket checkpoint in place of SDXL base."""
    return replace(catalog("sdxl-lightning").default, source="builtin:pocket-sdxl")


def test_a_lightning_denoiser_replaces_the_bases(
    baked: ModelOptions, lightning: PipelineSpec, sdxl_checkpoint: Path, sdxl: StableDiffusionXL
) -> None:
    """Weight by weight; its solver ends its schedule where it was distilled; and it says what it is."""
    parts = load_components(lightning, baked, Silent())
    base = load_file(sdxl_checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    for name, weight in parts.unet.state_dict().items():
        assert torch.equal(weight, (base[name] * 1.25).float()), name
    assert (type(parts.solver).__name__, parts.solver.config.timestep_spacing) == (
        "EulerDiscreteScheduler",
        "trailing",
    )
    ours = StableDiffusionXL(parts, cache_bytes=0)
    assert ours.lightning_enabled
    request = lightning.request(id="r", task=Task.GENERATE, prompt="night", width=64, height=64)
    assert (request.steps, request.guided) == (4, False)
    result = edit(ours, request)
    assert result.lightning_enabled
    assert pixels(result).std() > 10
    assert not sdxl.lightning_enabled


def lack_one(weights: dict[str, torch.Tensor]) -> None:
    del weights["conv_in.weight"]


def have_one_more(weights: dict[str, torch.Tensor]) -> None:
    weights["conv_in.lora"] = torch.zeros(1)


def be_of_another_shape(weights: dict[str, torch.Tensor]) -> None:
    weights["conv_in.weight"] = torch.zeros(3, 4, 3, 3)


@pytest.mark.parametrize("fault", [lack_one, have_one_more, be_of_another_shape])
def test_a_denoiser_that_does_not_fit_is_never_run(
    fault: Callable[[dict[str, torch.Tensor]], None], baked: ModelOptions, lightning: PipelineSpec
) -> None:
    """Half of a file applied would paint something, and call it Lightning."""
    file = find_denoiser(lightning.denoiser or "", baked, Silent())
    weights = load_file(file)
    fault(weights)
    save_file(weights, file)
    with pytest.raises(RuntimeError, match="conv_in"):
        load(lightning, baked, Silent())


def test_a_denoiser_that_is_nowhere_is_named(baked: ModelOptions, lightning: PipelineSpec) -> None:
    """With what to do about it; another kind of file is never read."""
    row = replace(lightning, denoiser="ByteDance/SDXL-Lightning/sdxl_lightning_2step_unet.safetensors")
    with pytest.raises(CapacityError, match=r"sdxl_lightning_2step_unet.*LORA_DIR"):
        load(row, baked, Silent())
    with pytest.raises(ValueError, match="safetensors"):
        find_denoiser("owner/name/weights.ckpt", baked, Silent())


def test_a_lora_that_cannot_be_had_stops_the_load(baked: ModelOptions, lightning: PipelineSpec) -> None:
    """The base in four unguided steps paints mud."""
    row = replace(lightning, denoiser=None, lightning_lora="owner/name/lora.safetensors")
    with pytest.raises(CapacityError, match=r"cannot be had.* choose another model") as caught:
        load(row, replace(baked, local_only=True), Silent())
    assert "USE_LIGHTNING_LORA" not in caught.value.message, "this row would not heed it"


def test_an_unknown_solver_is_refused(tmp_path: Path, sdxl_checkpoint: Path, sdxl_spec: PipelineSpec) -> None:
    """Two forwards a step, or none: a guess would paint something else."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(sdxl_checkpoint, folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "HeunDiscreteScheduler"}))
    with pytest.raises(CapacityError, match="HeunDiscreteScheduler is not known"):
        load(sdxl_spec, ModelOptions(model_dir=folder), Silent())


OTHER_LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "a denoiser that is shown the mask": ("unet", {"in_channels": 9}),
    "guidance as an input": ("unet", {"time_cond_proj_dim": 8}),
    "latents of their own scale": ("vae", {"latents_mean": [0.0] * 4}),
}


@pytest.mark.parametrize("case", OTHER_LOOPS)
def test_a_model_of_another_loop_is_refused(case: str, sdxl_parts: Components) -> None:
    """Such checkpoints are of the same class, and would paint something."""
    name, changes = OTHER_LOOPS[case]
    model = getattr(sdxl_parts, name)

    class Configured:
        config = type(model.config)(dict(model.config) | changes)

    replaced: dict[str, Any] = {name: Configured()}
    parts = replace(sdxl_parts, **replaced)
    with pytest.raises(ValueError, match=r"implemented|other inputs"):
        StableDiffusionXL(parts, cache_bytes=0)


def test_few_step_rows_follow_their_files() -> None:
    """Steps, guidance, licence and solver of a distilled model are facts of its file."""
    rows = {spec.name: spec for spec in SPECS if spec.factory == "pipelines.sdxl:load"}
    for name, spec in rows.items():
        file = spec.denoiser or spec.lightning_lora
        assert (file is not None) == (spec.lightning_steps is not None), name
        if file is not None:
            assert f"_{spec.steps}step_" in file
            assert spec.lightning_steps == spec.steps
            assert spec.cfg == 0.0
    assert rows["sdxl-turbo"].steps == 1
    assert all(spec.licence for spec in rows.values())
    assert len(rows) == 9


# The built-in checkpoint.


def test_it_is_made_in_a_moment(tmp_path: Path) -> None:
    """On first use, beside a server that is starting."""
    started = time.process_time()
    build(tmp_path)
    assert time.process_time() - started < 3.0


def test_two_builds_are_equal_byte_by_byte(sdxl_checkpoint: Path, tmp_path: Path) -> None:
    """In another process too: nothing may depend on hash seeds or on what was drawn before."""
    code = (
        "import sys; from pathlib import Path; from pipelines.pocket.sdxl import build;"
        "build(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    (other,) = tmp_path.iterdir()
    assert other.name == sdxl_checkpoint.name

    def contents(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    assert contents(other) == contents(sdxl_checkpoint)
    assert sum(map(len, contents(other).values())) < 3_000_000
    assert build(tmp_path) == other


def test_any_text_has_tokens(sdxl_parts: Components) -> None:
    """Bytes are the base: no letter of any script is taken for the token that ends a text."""
    for tokenizer, _ in sdxl_parts.encoders:
        ids = tokenizer("naïve façade 山 🌅 \x00 ß", add_special_tokens=False)["input_ids"]
        assert len(ids) > 8
        assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids)
