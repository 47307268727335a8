"""DINOv3: upstream's pixels, tokens and pooled features, by both of its architectures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.dinov3_convnext.configuration_dinov3_convnext import DINOv3ConvNextConfig
from transformers.models.dinov3_convnext.modeling_dinov3_convnext import DINOv3ConvNextModel
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel

from core.catalog import Catalog
from core.errors import CapacityError
from core.request import Image, InferenceRequest, Size
from core.spec import PipelineSpec
from core.vision import Features
from pipelines.dinov3 import DINOv3, preprocess
from pipelines.manager import ModelManager
from pipelines.options import ModelOptions
from pipelines.pocket import dinov3 as pocket
from pipelines.pocket import grounding_dino
from pipelines.pocket.drawing import redraw
from pipelines.registry import SPECS, catalog
from tests.pipelines import edits
from tests.pipelines.fixtures.make_dinov3 import CASES, FILE, pattern
from tests.pipelines.looks import difference, look

TOLERANCE = 1e-5
TALL: Size = (96, 160)


def acquire(spec: PipelineSpec, options: ModelOptions) -> DINOv3:
    pipeline = ModelManager(Catalog([spec], spec.name), options).acquire(spec.name)
    assert isinstance(pipeline, DINOv3)
    return pipeline


@pytest.fixture(scope="module")
def folders(options: ModelOptions, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A vision transformer and a ConvNeXt, each with every part of the real ones."""
    convnext = tmp_path_factory.mktemp("convnext")
    model = DINOv3ConvNextModel(DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1]))
    redraw(model, torch.float32)
    model.save_pretrained(convnext)
    return {"vit": pocket.build(options.cache_dir), "convnext": convnext}


@pytest.fixture(scope="module")
def vit(folders: dict[str, Path], options: ModelOptions) -> DINOv3:
    return acquire(catalog("dinov3-vits16").default, replace(options, model_dir=folders["vit"]))


@pytest.fixture(scope="module")
def convnext(folders: dict[str, Path], options: ModelOptions) -> DINOv3:
    return acquire(catalog("dinov3-convnext-tiny").default, replace(options, model_dir=folders["convnext"]))


def upstream(folder: Path) -> Any:
    kind = DINOv3ViTModel if "vit" in (folder / "config.json").read_text() else DINOv3ConvNextModel
    return kind.from_pretrained(folder).eval()


def features(pipeline: DINOv3, request: InferenceRequest) -> Features:
    output = edits.edit(pipeline, request).output
    assert isinstance(output, Features)
    return output


def tensors(found: Features) -> tuple[Tensor, Tensor]:
    tokens = torch.from_numpy(np.frombuffer(found.tokens, "<f4").copy()).view(found.length, found.width)
    return tokens, torch.from_numpy(np.frombuffer(found.pooled, "<f4").copy())


def asked(name: str, canvas: Size, number: int = 0) -> InferenceRequest:
    """As a row with another side would: the family itself takes any size."""
    return replace(look(name, number, width=150, height=90), canvas=canvas)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_pictures_enter_as_upstream_prepares_them(number: int) -> None:
    """Larger and smaller, square and not; scaling after resizing instead, as most do, would be seen."""
    size, entry, every = CASES[number]
    picture = Image(pixels=pattern(*size).tobytes(), width=size[0], height=size[1])
    with np.load(FILE) as made:
        theirs = torch.from_numpy(made[f"case{number}"])
    ours = preprocess(picture, entry)
    torch.testing.assert_close(ours[:, ::every, ::every], theirs, atol=TOLERANCE, rtol=0)
    rounded = torch.nn.functional.interpolate(
        torch.from_numpy(pattern(*size)).permute(2, 0, 1)[None], entry[::-1], mode="bilinear", antialias=True
    )
    late = preprocess(
        Image(
            pixels=rounded[0].permute(1, 2, 0).contiguous().numpy().tobytes(), width=entry[0], height=entry[1]
        ),
        entry,
    )
    assert (late[:, ::every, ::every] - theirs).abs().max() > 100 * TOLERANCE


def test_rows_have_the_sizes_of_the_published_processors() -> None:
    """224 by 224 and no other: upstream's conversion scripts write its own default."""
    rows = [spec for spec in SPECS if spec.factory == "pipelines.dinov3:load"]
    assert len(rows) >= 5
    with np.load(FILE) as made:
        default = tuple(made["default_size"].tolist())
    for row in rows:
        assert row.vision is not None
        assert row.vision.entry((640, 480)) == default
        vit = "vit" in row.name or row.name == "pocket-dinov3"
        assert row.vision.patch == (DINOv3ViTConfig().patch_size if vit else 32)


@pytest.mark.parametrize("kind", ["vit", "convnext"])
@pytest.mark.parametrize("canvas", [(224, 224), TALL], ids=str)
def test_tokens_are_upstreams(
    kind: str, canvas: Size, folders: dict[str, Path], request: pytest.FixtureRequest
) -> None:
    """All of them, and the pooled one is upstream's ``pooler_output``."""
    pipeline: DINOv3 = request.getfixturevalue(kind)
    wish = asked("pocket-dinov3", canvas)
    tokens, pooled = tensors(features(pipeline, wish))
    with torch.inference_mode():
        theirs = upstream(folders[kind])(pixel_values=preprocess(wish.images[0], canvas)[None])
    torch.testing.assert_close(tokens, theirs.last_hidden_state[0], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(pooled, theirs.pooler_output[0], atol=TOLERANCE, rtol=0)
    other, _ = tensors(features(pipeline, asked("pocket-dinov3", canvas, 1)))
    assert (other - tokens).abs().max() > 100 * TOLERANCE
    assert tokens[-6:].std(0).mean() > 0.05  # a constant would agree with itself


def test_a_transformers_patches_are_its_last_tokens_row_by_row(vit: DINOv3, folders: dict[str, Path]) -> None:
    """Each position is that of a patch of the picture, which clients draw back onto it."""
    found = features(vit, asked("pocket-dinov3", TALL))
    columns, rows = found.grid
    assert (columns, rows) == (6, 10)
    assert found.length == 1 + 4 + columns * rows
    pixels = preprocess(edits.picture(0, 150, 90), TALL)[None]
    embed = upstream(folders["vit"]).embeddings
    with torch.inference_mode():
        places = embed(pixels)[0, -columns * rows :]
        for row, column in ((0, 0), (0, 5), (3, 1), (9, 4)):
            patch = pixels[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            own = embed.patch_embeddings(patch)[0, :, 0, 0]
            closest = (places - own).abs().amax(-1).argmin()
            assert int(closest) == row * columns + column
            torch.testing.assert_close(places[closest], own, atol=TOLERANCE, rtol=0)


def test_a_convnexts_patches_are_its_last_tokens_row_by_row(
    convnext: DINOv3, folders: dict[str, Path]
) -> None:
    """Before them stands their mean, which takes the place of a class token."""
    found = features(convnext, asked("pocket-dinov3", TALL))
    columns, rows = found.grid
    assert (columns, rows) == (3, 5)
    assert found.length == 1 + columns * rows
    model = upstream(folders["convnext"])
    with torch.inference_mode():
        maps = model.model(preprocess(edits.picture(0, 150, 90), TALL)[None]).last_hidden_state[0]
        tokens, pooled = tensors(found)
        for row, column in ((0, 0), (0, 2), (4, 1)):
            own = model.layer_norm(maps[:, row, column])
            torch.testing.assert_close(tokens[1 + row * columns + column], own, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(pooled, model.layer_norm(maps.mean((1, 2))), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_a_batch_gives_what_its_rows_give_alone(kind: str, request: pytest.FixtureRequest) -> None:
    """Pictures of any sizes enter at one size, so all of them share a forward."""
    pipeline: DINOv3 = request.getfixturevalue(kind)
    wishes = [look("pocket-dinov3", i, width=40 + 90 * i, height=200 - 50 * i) for i in range(3)]
    states = pipeline.prepare(wishes)
    pipeline.step(states)
    together = pipeline.decode(states)
    for wish, result in zip(wishes, together, strict=True):
        assert difference(result, edits.edit(pipeline, wish)) <= TOLERANCE
    assert difference(together[0], together[1]) > 100 * TOLERANCE


def test_another_model_is_refused(options: ModelOptions) -> None:
    """A folder that holds something else says so when it is loaded, not when it is asked."""
    folder = grounding_dino.build(options.cache_dir)
    with pytest.raises(CapacityError, match="is a grounding-dino and dinov3-vits16 needs dinov3_vit"):
        acquire(catalog("dinov3-vits16").default, replace(options, model_dir=folder))
