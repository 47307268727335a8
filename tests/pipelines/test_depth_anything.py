"""Depth Anything, releases 2 and 3: what goes in and comes out is what the official code makes of it."""

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Pictures
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate
from transformers.modeling_outputs import DepthEstimatorOutput
from transformers.models.depth_anything.configuration_depth_anything import DepthAnythingConfig
from transformers.models.depth_anything.modeling_depth_anything import DepthAnythingForDepthEstimation
from transformers.models.dinov2.configuration_dinov2 import Dinov2Config
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings
from transformers.models.dpt.image_processing_pil_dpt import (
    DPTImageProcessorPil,
    get_resize_output_image_size,
)

from core.errors import CapacityError, RequestError
from core.pipeline import BatchKey
from core.request import InferenceRequest
from core.result import InferenceResult
from core.vision import Depth, DepthMap
from core.vision_spec import VisionSpec
from pipelines.depth_anything import DepthAnything
from pipelines.depth_anything_networks import DepthAnything3, fill_sky
from pipelines.depth_anything_pixels import preprocess_v2, preprocess_v3
from pipelines.looking import array
from pipelines.manager import ModelManager
from pipelines.options import ModelOptions
from pipelines.pocket.depth import build
from pipelines.pocket.drawing import redraw
from pipelines.registry import catalog
from tests.pipelines import edits
from tests.pipelines.fixtures.make_depth_anything import SIDE, SIZES, SPARSE, TRAINED, picture
from tests.pipelines.looks import difference, look, values

MEAN, STD = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
V3 = VisionSpec(fit="longest", side=SIDE, multiple=14, patch=14)
V2 = VisionSpec(fit="either", side=518, longest=4 * 518, multiple=14, patch=14)
NUMBERS = range(len(SIZES))


@pytest.fixture(scope="module")
def official() -> Mapping[str, NDArray[Any]]:
    return dict(np.load(Path(__file__).with_name("fixtures") / "depth_anything.npz"))


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("pocket-depth"))


def acquire(name: str, folder: Path) -> DepthAnything:
    pipeline = ModelManager(catalog(name), ModelOptions(model_dir=folder)).acquire(name)
    assert isinstance(pipeline, DepthAnything)
    return pipeline


@pytest.fixture(scope="module")
def mono(pocket: Path) -> DepthAnything:
    return acquire("pocket-depth", pocket)


def told(pipeline: DepthAnything, request: InferenceRequest) -> InferenceResult:
    return edits.edit(pipeline, request)


def depth_of(result: InferenceResult) -> DepthMap:
    assert isinstance(result.output, DepthMap)
    return result.output


def normalised(levels: NDArray[np.uint8]) -> torch.Tensor:
    return (torch.from_numpy(levels).float() / 255 - MEAN) / STD


def levels_of(read: torch.Tensor) -> NDArray[np.float32]:
    levels: NDArray[np.float32] = ((read * STD + MEAN) * 255).numpy()
    return levels


# How pictures enter.


@pytest.mark.parametrize("number", NUMBERS)
def test_release_3_reads_a_picture_as_the_official_code(
    official: Mapping[str, NDArray[Any]], number: int
) -> None:
    """Another size would shift every pixel; another filter is another picture to the network."""
    expected = official[f"levels_{number}"].astype(np.float32)
    size = V3.entry(SIZES[number])
    assert expected.shape == (3, size[1], size[0])
    apart = np.abs(levels_of(preprocess_v3(picture(number), size)) - expected)
    assert apart.max() < 1.01
    assert (apart > 0.5).mean() < 0.002
    plain = Pictures.fromarray(array(picture(number))).resize(size, Pictures.Resampling.BILINEAR)
    assert np.abs(np.asarray(plain, np.float32).transpose(2, 0, 1) - expected).max() > 3


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((504, 376), (504, 378)),  # upstream's own example
        ((680, 1208), (280, 504)),
        ((1208, 680), (504, 280)),
        ((504, 371), (504, 378)),  # as near to 364: the larger
        ((504, 3), (504, 14)),  # upstream makes one pixel of it, and fails
    ],
)
def test_release_3_rounds_to_the_nearest_patch(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """ "upper_bound_resize" at 504."""
    assert VisionSpec(fit="longest", side=504, multiple=14).entry(size) == expected


def test_release_2_has_the_sizes_of_its_processor() -> None:
    """For every shape up to the bound, beyond which the processor's would grow with the picture."""
    sides = (5, 96, 97, 333, 400, 518, 519, 700, 1036, 1499, 2000)
    shapes = [(w, h) for w in sides for h in sides if max(w, h) <= 4 * min(w, h)]
    assert len(shapes) > 50
    for width, height in shapes:
        official = get_resize_output_image_size(np.empty((3, height, width)), (518, 518), True, 14)
        assert V2.entry((width, height)) == (official.width, official.height)
    assert max(V2.entry((9000, 600))) == 4 * 518
    assert min(V2.entry((9000, 100))) >= 14


@pytest.mark.parametrize("number", NUMBERS)
def test_release_2_reads_a_picture_as_its_processor(number: int) -> None:
    """Bit for bit with transformers' own, at the settings of the released checkpoints."""
    processor = DPTImageProcessorPil(
        size={"height": 140, "width": 140},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    expected = processor(array(picture(number)), return_tensors="pt")["pixel_values"][0]
    size = VisionSpec(fit="either", side=140, longest=4000, multiple=14).entry(SIZES[number])
    read = preprocess_v2(picture(number), size)
    torch.testing.assert_close(read, expected.float(), rtol=0, atol=2e-6)
    assert float((preprocess_v3(picture(number), size) - expected).abs().max()) > 0.05


# Release 3's network.


@pytest.mark.parametrize("number", NUMBERS)
def test_release_3_gives_what_the_official_network_gives(
    official: Mapping[str, NDArray[Any]], mono: DepthAnything, number: int
) -> None:
    """On weights in its own layout: names, order of levels, heads, positions and sky all agree."""
    network = mono._network
    read = normalised(official[f"levels_{number}"])
    expected = torch.from_numpy(official[f"depth_{number}"])
    with torch.inference_mode():
        depth, sky = network(read[None])
        filled = fill_sky(depth[0], sky[0])[::SPARSE, ::SPARSE]
    torch.testing.assert_close(filled, expected, rtol=0, atol=2e-5)
    assert float((depth[0][::SPARSE, ::SPARSE] - expected).abs().max()) > 0.1  # the sky is part of it
    plain: Any = copy.deepcopy(network)
    plain.backbone.embeddings.__class__ = Dinov2Embeddings
    with torch.inference_mode():
        assert float((plain(read[None])[0] - depth).abs().max()) > 1e-3  # and so are the positions


def test_positions_stay_as_they_are_at_the_trained_size(
    official: Mapping[str, NDArray[Any]], mono: DepthAnything
) -> None:
    """The one size at which upstream scales none."""
    read = normalised(official[f"levels_{NUMBERS[-1]}"])
    with torch.inference_mode():
        depth, sky = mono._network(interpolate(read[None], (TRAINED, TRAINED)))
    filled = fill_sky(depth[0], sky[0])[::SPARSE, ::SPARSE]
    torch.testing.assert_close(filled, torch.from_numpy(official["depth_trained"]), rtol=0, atol=2e-5)


def test_blocks_and_the_last_norm_have_their_own_epsilons(mono: DepthAnything) -> None:
    """Too small a difference to see in these weights' numbers; upstream's are what they were trained with."""
    network = mono._network
    assert isinstance(network, DepthAnything3)
    assert network.backbone.layernorm.eps == 1e-5
    assert network.backbone.encoder.layer[0].norm1.eps == 1e-6


# Sky.


def test_sky_is_as_far_as_nearly_all_of_the_ground() -> None:
    """The 99th of 100 parts of the depths below, without a few that stick out."""
    depth = torch.arange(1.0, 401.0).reshape(20, 20)
    sky = torch.zeros(20, 20)
    sky[:5] = 0.3
    filled = fill_sky(depth, sky)
    assert torch.equal(filled[5:], depth[5:])
    assert set(filled[:5].ravel().tolist()) == {float(torch.quantile(depth[5:], 0.99))}


@pytest.mark.parametrize("count", [0, 10, 390, 400])
def test_hardly_any_sky_or_ground_is_left_alone(count: int) -> None:
    """Ten pixels are noise, and tell nothing of a distance."""
    depth = torch.rand(400, generator=torch.Generator().manual_seed(0)).reshape(20, 20)
    sky = (torch.arange(400) < count).float().reshape(20, 20)
    assert torch.equal(fill_sky(depth, sky), depth)
    assert not torch.equal(fill_sky(depth, (torch.arange(400) < 11).float().reshape(20, 20)), depth)


def test_each_picture_has_a_sky_of_its_own(mono: DepthAnything) -> None:
    """Upstream takes one quantile over all that is in a call; beside strangers that would be theirs too."""
    states = mono.prepare([look("pocket-depth", number) for number in (0, 1)])
    mono.step(states)
    first, other = (state.raw for state in states)
    assert first is not None
    assert first.sky is not None
    assert bool((first.sky >= 0.3).any())
    assert other is not None
    expected = depth_of(mono.decode(states)[0])
    states[1].raw = replace(other, depth=other.depth * 100)
    assert depth_of(mono.decode(states)[0]) == expected


# What is told.


def test_maps_have_the_pictures_own_size_and_follow_it(mono: DepthAnything) -> None:
    """A turned picture gives another map of a turned size, row by row."""
    one = depth_of(told(mono, look("pocket-depth", width=90, height=40)))
    assert (one.size, len(one.values)) == ((90, 40), 4 * 90 * 40)
    assert (one.kind, one.unit) == ("depth", "relative")
    entered = mono.prepare([look("pocket-depth", width=90, height=40)])
    mono.step(entered)
    assert entered[0].raw is not None
    assert entered[0].raw.depth.shape == (112, 252)


def test_pictures_of_other_sizes_share_a_batch_where_they_enter_alike(mono: DepthAnything) -> None:
    """The key holds the size at which they enter; each map has its own picture's."""
    requests = [look("pocket-depth", i, width=96 * i, height=72 * i) for i in (1, 2, 3)]
    assert len({BatchKey.of(request) for request in requests}) == 1
    assert BatchKey.of(look("pocket-depth", width=72, height=96)) != BatchKey.of(requests[0])
    states = mono.prepare(requests)
    mono.step(states)
    for request, result in zip(requests, mono.decode(states), strict=True):
        assert depth_of(result).size == request.size
        assert difference(result, told(mono, request)) < 2e-5


def renamed(pocket: Path, folder: Path, model_name: str) -> Path:
    shutil.copytree(pocket, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text()) | {"model_name": model_name}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_metres_need_a_focal_length(pocket: Path, tmp_path: Path) -> None:
    """``focal * output / 300``, the focal length in pixels of the picture as it enters; without one the
    output is metres up to a factor, and says so.
    """
    metric = acquire("da3metric-large", renamed(pocket, tmp_path, "da3metric-large"))
    bare = told(metric, look("da3metric-large", width=100, height=75))
    scaled = told(metric, look("da3metric-large", width=100, height=75, focal=120.0))
    assert (depth_of(bare).unit, depth_of(scaled).unit) == ("relative", "metre")
    assert (depth_of(bare).kind, depth_of(scaled).kind) == ("depth", "depth")
    expected = 120.0 * (504 / 100 + 378 / 75) / 2 / 300
    np.testing.assert_allclose(values(scaled), values(bare) * expected, rtol=1e-5)


def test_a_focal_length_makes_no_metres_of_what_is_relative(mono: DepthAnything) -> None:
    """The monocular network has no scale to begin with."""
    bare, given = told(mono, look("pocket-depth")), told(mono, look("pocket-depth", focal=120.0))
    assert depth_of(given) == depth_of(bare)


# Release 2.


def write_v2(folder: Path, **given: Any) -> Path:
    """Its architecture, small and untrained, as transformers writes it."""
    backbone = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=70,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
        **given,
    )
    model = DepthAnythingForDepthEstimation(config)
    redraw(model, torch.float32, {"position_embeddings": 5.0, "conv3.bias": 0.0})
    with torch.no_grad():
        model.head.conv3.bias.fill_(1.0)
    model.save_pretrained(folder)
    # Released configurations say less of the trunk, and hold fields that are gone.
    written = json.loads((folder / "config.json").read_text())
    kept = {"hidden_size", "image_size", "model_type", "num_attention_heads", "num_hidden_layers"}
    kept |= {"out_features", "out_indices", "patch_size", "reshape_hidden_states"}
    written["backbone_config"] = {field: written["backbone_config"][field] for field in kept}
    written |= {"_commit_hash": None, "backbone": None, "use_pretrained_backbone": False}
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def test_release_2_gives_what_transformers_gives(tmp_path: Path) -> None:
    """The model's own forward and the processor's own resizing: disparity, whose unit nobody knows."""
    name = "depth-anything-v2-small"
    pipeline = acquire(name, write_v2(tmp_path))
    request = look(name, width=120, height=100)
    result = told(pipeline, request)
    assert (depth_of(result).kind, depth_of(result).unit) == ("disparity", "relative")
    model = DepthAnythingForDepthEstimation.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        found = model(preprocess_v2(request.images[0], request.canvas)[None])
    assert isinstance(found, DepthEstimatorOutput)
    told_there = DPTImageProcessorPil().post_process_depth_estimation(found, [(100, 120)])
    expected = told_there[0]["predicted_depth"].numpy().ravel()
    np.testing.assert_allclose(values(result), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.05
    other = told(pipeline, look(name, 1, width=120, height=100))
    assert difference(result, other) > 0.1


def test_release_2_trained_on_metres_gives_metres(tmp_path: Path) -> None:
    """Up to the farthest that it was trained on."""
    name = "depth-anything-v2-metric-indoor-small"
    pipeline = acquire(name, write_v2(tmp_path, depth_estimation_type="metric", max_depth=20))
    found = told(pipeline, look(name, focal=77.0))
    assert (depth_of(found).kind, depth_of(found).unit) == ("depth", "metre")
    assert 1 < values(found).max() < 20.5
    assert depth_of(told(pipeline, look(name))) == depth_of(found)


# What is refused.


def refusal(name: str, folder: Path) -> str:
    with pytest.raises(CapacityError) as refused:
        acquire(name, folder)
    assert refused.value.code == "not_ready"
    return refused.value.message


def test_a_checkpoint_of_another_release_is_refused(pocket: Path, tmp_path: Path) -> None:
    """It would enter at the wrong size, or be told with the wrong unit."""
    assert "da3mono-large or pocket-depth" in refusal("pocket-depth", write_v2(tmp_path))
    assert "pocket-depth" in refusal("depth-anything-v2-small", pocket)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda weights: weights.pop("model.head.scratch.sky_output_conv2.2.weight"),
        lambda weights: weights.pop("model.backbone.pretrained.cls_token"),
        lambda weights: weights.update({"model.head.projects.1.weight": torch.zeros(24, 32, 1, 1)}),
    ],
    ids=["a head is missing", "the trunk is missing", "a width does not fit"],
)
def test_weights_that_do_not_fit_are_refused(pocket: Path, tmp_path: Path, spoil: Any) -> None:
    """A random part would give depths that look like depths."""
    folder = renamed(pocket, tmp_path, "da3mono-large")
    weights = load_file(folder / "model.safetensors")
    spoil(weights)
    save_file(weights, folder / "model.safetensors")
    assert "weights are not those" in refusal("da3mono-large", folder)


def test_weights_that_nobody_asks_for_are_no_matter(pocket: Path, tmp_path: Path) -> None:
    """Upstream loads that way too; a released file may hold what its network no longer has."""
    folder = renamed(pocket, tmp_path, "da3mono-large")
    more = ("cam_dec.fc_t.weight", "head.norm.weight", "head.scratch.refinenet4.resConfUnit1.conv1.weight")
    weights = load_file(folder / "model.safetensors")
    weights |= {f"model.{name}": torch.zeros(3) for name in more}
    save_file(weights, folder / "model.safetensors")
    assert depth_of(told(acquire("da3mono-large", folder), look("da3mono-large"))).unit == "relative"


def test_no_large_network_is_meant_by_a_short_name() -> None:
    """The larger ones may not be used in trade."""
    for name in ("depth-anything", "depth_anything", "depth-anything/da3-base"):
        assert catalog(name).default.licence == "Apache-2.0"
    assert catalog("da3-large").default.licence == "CC-BY-NC-4.0"


def test_the_pocket_checkpoint_is_small(pocket: Path) -> None:
    """It is written at a worker's first start."""
    assert sum(file.stat().st_size for file in pocket.iterdir()) < 2_000_000


def test_a_focal_length_is_checked() -> None:
    """Before anything runs."""
    spec = catalog("pocket-depth").default
    with pytest.raises(RequestError, match="focal"):
        spec.look(id="x", image=edits.picture(0), ask=Depth(focal=0.0))
