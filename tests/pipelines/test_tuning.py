"""Tiles, slices and compiled blocks: less memory or time for nearly the same picture."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from core.spec import PipelineSpec
from pipelines.options import ModelOptions, Silent, Tuning
from pipelines.precision import Scheme
from pipelines.quantization import quantize
from pipelines.qwen_image import QwenImageEdit, load_edit_plus
from pipelines.qwen_loading import Components
from pipelines.qwen_text import NUMBERED_PICTURES
from pipelines.qwen_vae import PictureVae, pack, unpack
from tests.pipelines.edits import ask, edit, pixels, run_to_end

CPU = torch.device("cpu")
CANVAS = (320, 288)  # over one tile of 256x256 on both sides


@pytest.fixture(scope="module")
def tiled(spec: PipelineSpec, options: ModelOptions) -> Any:
    """The autoencoder as a load leaves it."""
    tuning = Tuning(vae_tiling=True, vae_slicing=True)
    return load_edit_plus(spec, replace(options, tuning=tuning), Silent())._parts.vae


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """[2, 3, height, width] in -1 ... 1: smooth colours."""
    coarse = torch.rand((2, 3, 6, 6), generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=CANVAS[::-1], mode="bicubic").clamp(-1, 1)


@torch.inference_mode()
def test_tiles_are_those_of_the_stock_autoencoder(tiled: Any, photo: torch.Tensor) -> None:
    """Its own ``encode`` and ``decode`` with tiling enabled, which we do not call."""
    ours = PictureVae(tiled, CPU, torch.float32)
    latents = ours.encode(photo[:1])
    stock = tiled.encode(photo[:1].unsqueeze(2)).latent_dist.mean
    assert torch.equal(latents, pack((stock - ours._mean) / ours._deviation))
    decoded = tiled.decode(unpack(latents, CANVAS) / (1.0 / ours._deviation) + ours._mean).sample[:, :, 0]
    expected = decoded.mul(0.5).add(0.5).clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(ours.decode(latents, CANVAS), expected)


@torch.inference_mode()
def test_tiles_are_near_to_the_whole_and_not_the_same(
    tiled: Any, photo: torch.Tensor, parts: Components
) -> None:
    """The second half shows that they were used at all: the help text promises seams, faint ones."""
    whole = PictureVae(parts.vae, CPU, torch.float32)
    latents = whole.encode(photo[:1])
    difference = whole.decode(latents, CANVAS).float() - PictureVae(tiled, CPU, torch.float32).decode(
        latents, CANVAS
    )
    assert 0 < float(difference.abs().mean()) < 2


@torch.inference_mode()
def test_a_picture_of_one_tile_is_not_cut(tiled: Any, photo: torch.Tensor, parts: Components) -> None:
    """Nothing is gained below the size of a tile."""
    small = photo[..., :256, :256]
    latents = PictureVae(parts.vae, CPU, torch.float32).encode(small)
    assert torch.allclose(PictureVae(tiled, CPU, torch.float32).encode(small), latents, atol=1e-5)


@torch.inference_mode()
def test_slices_are_single_pictures(tiled: Any, photo: torch.Tensor, parts: Components) -> None:
    """VAE_SLICING bounds memory by one picture, where small ones would share a call."""
    seen: dict[str, list[int]] = {"sliced": [], "shared": []}
    for name, vae in (("sliced", tiled), ("shared", parts.vae)):
        ours = PictureVae(vae, CPU, torch.float32)
        hook = vae.encoder.register_forward_pre_hook(
            lambda _, inputs, name=name: seen[name].append(len(inputs[0]))
        )
        ours.encode(photo[..., :64, :64])
        hook.remove()
    assert seen == {"sliced": [1, 1], "shared": [2]}


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Compiled code is kept for the whole process."""
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("scheme", [None, "bitsandbytes-int8"])
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_blocks_give_the_same_pictures(
    scheme: Scheme | None, parts: Components, spec: PipelineSpec
) -> None:
    """Captured without a break for one row, for several and for another size; compiled once for them all.

    Captured only: generating machine code takes minutes and is the compiler's own affair.
    """
    transformer = copy.deepcopy(parts.transformer)
    transformer.transformer_blocks = transformer.transformer_blocks[:1]
    if scheme is not None:
        quantize(transformer, "denoiser", scheme, compute=torch.float32, device=CPU)
    pipeline = QwenImageEdit(replace(parts, transformer=transformer), NUMBERED_PICTURES, cache_bytes=0)
    batches = [
        [ask(spec, 0, steps=1)],
        [ask(spec, 0, steps=1, width=96), ask(spec, 1, steps=1, width=96)],
        [ask(spec, i, steps=1) for i in range(3)],
    ]
    plain = [run(pipeline, batch) for batch in batches]
    torch._dynamo.utils.counters.clear()
    transformer.compile_repeated_blocks(dynamic=True, backend="eager", fullgraph=True)
    for batch, expected in zip(batches, plain, strict=True):
        for row, other in zip(run(pipeline, batch), expected, strict=True):
            assert abs(row - other).max() <= 1
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6


def run(pipeline: QwenImageEdit, batch: list[Any]) -> list[Any]:
    states = pipeline.prepare(batch)
    run_to_end(pipeline, states)
    return [pixels(result) for result in pipeline.decode(states)]


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # torch's own
def test_a_load_compiles_the_repeated_blocks_alone(spec: PipelineSpec, options: ModelOptions) -> None:
    """The four blocks of the pocket transformer; nothing is compiled before the first forward."""
    loaded = load_edit_plus(spec, replace(options, tuning=Tuning(compile=True)), Silent())
    compiled = {
        name
        for name, part in loaded._parts.transformer.named_modules()
        if part._compiled_call_impl is not None
    }
    assert compiled == {f"transformer_blocks.{i}" for i in range(4)}
    plain = load_edit_plus(spec, options, Silent())
    assert all(part._compiled_call_impl is None for part in plain._parts.transformer.modules())
    assert edit(plain, ask(spec)).image.size == (64, 64)
