"""A vision checkpoint is read whole and as what it is, or refused with a sentence for the operator."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel

from core.errors import CapacityError
from pipelines.manager import ModelManager
from pipelines.options import ModelOptions, Precision, Silent
from pipelines.pocket import dinov3
from pipelines.registry import catalog
from pipelines.vision_loading import VisionLoader

SPEC = catalog("pocket-dinov3").default


@pytest.fixture
def folder(tmp_path: Path, options: ModelOptions) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(dinov3.build(options.cache_dir), tmp_path / "copy"))


def load(folder: Path) -> None:
    options = ModelOptions(model_dir=folder)
    VisionLoader(SPEC, options, Silent(), model_type=("dinov3_vit",)).model(DINOv3ViTModel)


def test_a_whole_checkpoint_is_read(folder: Path) -> None:
    """The control of what follows."""
    load(folder)


def test_a_weight_that_is_not_there_is_never_made_up(folder: Path) -> None:
    """The library would draw it at random and say so in a log."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CapacityError, match="lacks 1 of the weights"):
        load(folder)


def test_another_kind_of_checkpoint_is_refused_by_name(folder: Path) -> None:
    """Before its weights are read."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "sam3"}))
    with pytest.raises(CapacityError, match="is a sam3 and pocket-dinov3 needs dinov3_vit"):
        load(folder)


def test_a_folder_without_a_configuration_is_refused(folder: Path) -> None:
    """As a diffusers checkpoint would be, whose parts lie in folders."""
    (folder / "config.json").unlink()
    with pytest.raises(CapacityError, match=r"no config\.json"):
        load(folder)


@pytest.mark.parametrize("mode", ["bf16", "fp32", "8bit", "4bit"])
def test_weights_stay_whole_whatever_the_precision(mode: str, options: ModelOptions) -> None:
    """And the sentence says so: a setting that silently does not apply would be a lie."""
    chosen = replace(options, precision=Precision(mode=mode))  # type: ignore[arg-type]
    models = ModelManager(catalog("pocket-dinov3"), chosen)
    pipeline = models.acquire("pocket-dinov3")
    assert pipeline.weights.precision == "fp32"
    assert pipeline.precision.startswith("fp32 weights")
    assert ("leaves them" in pipeline.precision) == (mode in ("8bit", "4bit"))


def test_what_is_expected_of_a_load_is_what_it_takes(options: ModelOptions) -> None:
    """Its weights stay in fp32 also where those of other models are halved, so it must be counted so."""
    bytes_of_pocket = 600_000
    small = replace(options, memory_bytes=bytes_of_pocket // 2)
    with pytest.raises(CapacityError, match="GPU_MAX_GIB"):
        ModelManager(catalog("pocket-dinov3"), small).acquire("pocket-dinov3")
    pipeline = ModelManager(catalog("pocket-dinov3"), options).acquire("pocket-dinov3")
    assert pipeline.weights.nbytes == pytest.approx(bytes_of_pocket, rel=0.01)
    assert torch.get_num_threads() == 1
