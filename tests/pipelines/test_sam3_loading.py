"""Which checkpoints SAM 3 is loaded from: its own, and the published one that holds a tracker as well."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import Sam3TrackerVideoConfig
from transformers.models.sam3_video.configuration_sam3_video import Sam3VideoConfig
from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoModel

from core.errors import CapacityError
from core.vision import Segment, SegmentPrompt
from pipelines.options import ModelOptions, Silent
from pipelines.pocket import sam3 as pocket
from pipelines.registry import catalog
from pipelines.sam3 import Sam3, load
from pipelines.sam3_boxes import Detector
from tests.pipelines import edits
from tests.pipelines.looks import difference

SPEC = catalog("pocket-sam3").default
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def detector(options: ModelOptions) -> Path:
    return pocket.build(options.cache_dir)


@pytest.fixture(scope="module")
def combined(detector: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``Sam3VideoModel`` of the pocket detector and a small tracker: the layout of facebook/sam3."""
    folder = tmp_path_factory.mktemp("combined")
    model = Detector.from_pretrained(detector)
    config = Sam3VideoConfig(
        detector_config=model.config.to_dict(),
        tracker_config=Sam3TrackerVideoConfig(
            vision_config=model.config.vision_config.to_dict(),
            image_size=112,
            memory_attention_num_layers=1,
            memory_attention_feed_forward_hidden_size=16,
            memory_fuser_intermediate_dim=16,
        ).to_dict(),
    )
    video = Sam3VideoModel(config)
    video.detector_model.load_state_dict(model.state_dict())
    video.save_pretrained(folder)
    for file in (*detector.glob("tokenizer*"), detector / "preprocessor_config.json"):
        shutil.copy(file, folder)
    return folder


def loaded(folder: Path, options: ModelOptions) -> Sam3:
    return load(SPEC, replace(options, model_dir=folder), Silent())


def test_the_detector_of_the_published_layout_is_the_detector(
    combined: Path, detector: Path, options: ModelOptions
) -> None:
    """Its weights stand under ``detector_model``, and its configuration under ``detector_config``."""
    names = load_file(combined / WEIGHTS)
    assert {name.partition(".")[0] for name in names} == {"detector_model", "tracker_model", "tracker_neck"}
    assert json.loads((combined / "config.json").read_text())["model_type"] == "sam3_video"
    request = SPEC.look(
        id="look",
        image=edits.picture(0),
        ask=Segment(
            prompts=(SegmentPrompt(text="tree", boxes=(((8.0, 8.0, 50.0, 40.0), True),)),), threshold=0.05
        ),
    )
    found, want = (edits.edit(loaded(folder, options), request) for folder in (combined, detector))
    assert difference(found, want) == 0.0
    assert (
        difference(found, edits.edit(loaded(combined, options), replace(request, images=(edits.picture(1),))))
        > 1
    )


def test_only_the_detector_takes_memory(combined: Path, detector: Path, options: ModelOptions) -> None:
    """The tracker is not loaded."""
    whole = sum(weight.nbytes for weight in load_file(combined / WEIGHTS).values())
    ours, alone = (loaded(folder, options).weights.nbytes for folder in (combined, detector))
    assert ours == alone < whole / 2


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


@pytest.mark.parametrize("lost", ["presence_head.layer3.weight", "geometry_encoder.cls_embed.weight"])
def test_a_detector_that_lacks_weights_is_refused(
    combined: Path, options: ModelOptions, tmp_path: Path, lost: str
) -> None:
    """They would be random. The tracker's may be missing."""
    folder = copied(combined, tmp_path / "copy")
    weights = load_file(folder / WEIGHTS)
    kept = {name: weight for name, weight in weights.items() if not name.endswith(lost)}
    assert len(kept) == len(weights) - 1
    save_file(kept, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(CapacityError, match="lacks 1 of the weights"):
        loaded(folder, options)
    save_file(
        {n: w for n, w in weights.items() if n.startswith("detector")}, folder / WEIGHTS, {"format": "pt"}
    )
    assert loaded(folder, options).weights.nbytes


def test_a_checkpoint_of_another_size_is_refused(detector: Path, options: ModelOptions) -> None:
    """Positions are made for one size of picture, and the row says at which size pictures enter."""
    with pytest.raises(CapacityError, match="reads pictures at 112 pixels and sam3 at 1008") as refused:
        load(catalog("sam3").default, replace(options, model_dir=detector), Silent())
    assert not refused.value.retryable


def test_a_checkpoint_of_another_model_is_refused(
    detector: Path, options: ModelOptions, tmp_path: Path
) -> None:
    """Before its weights are read."""
    folder = copied(detector, tmp_path / "copy")
    (folder / "config.json").write_text(json.dumps({"model_type": "dinov3_vit"}))
    with pytest.raises(CapacityError, match="is a dinov3_vit and pocket-sam3 needs sam3 or sam3_video"):
        loaded(folder, options)


def test_the_pocket_checkpoint_is_small_and_the_same_every_time(detector: Path, tmp_path: Path) -> None:
    """It is built where it is asked for, and tests compare what it gives."""
    again = pocket.build(tmp_path)
    files = sorted(path.name for path in detector.iterdir())
    assert sorted(path.name for path in again.iterdir()) == files
    assert all((again / name).read_bytes() == (detector / name).read_bytes() for name in files)
    assert sum((detector / name).stat().st_size for name in files) < 2e6
    assert all(torch.isfinite(weight).all() for weight in load_file(detector / WEIGHTS).values())
