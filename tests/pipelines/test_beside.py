"""Files that a row needs beside its checkpoint: found, fetched and counted before another model leaves."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.catalog import Catalog
from core.errors import CapacityError
from core.spec import PipelineSpec
from pipelines import checkpoint
from pipelines.beside import named
from pipelines.checkpoint import Found
from pipelines.manager import ModelManager
from pipelines.options import Lightning, ModelOptions, Report, Silent
from pipelines.registry import catalog
from pipelines.sdxl_loading import load_components
from pipelines.single_files import locate
from tests.pipelines import fakes

FILE = "owner/name/denoiser.safetensors"
LIGHT = PipelineSpec(name="light", factory="tests.pipelines.fakes:load", source="1", needs_gpu=False)


@pytest.fixture
def row() -> PipelineSpec:
    """A row with a denoiser of its own, over the pocket checkpoint."""
    spec = replace(catalog("sdxl-lightning").default, source="builtin:pocket-sdxl", needs_gpu=False)
    return replace(spec, denoiser=FILE)


@pytest.fixture
def baked(tmp_path: Path, sdxl_checkpoint: Path) -> ModelOptions:
    return ModelOptions(
        cache_dir=sdxl_checkpoint.parent, local_only=True, lightning=Lightning(folder=tmp_path)
    )


def find(spec: PipelineSpec, options: ModelOptions, report: Report) -> Found:
    return (fakes.find if spec.name == "light" else checkpoint.find)(spec, options, report)


def test_a_denoiser_is_counted_in_place_of_the_checkpoints(
    row: PipelineSpec, baked: ModelOptions, tmp_path: Path
) -> None:
    """A repository of which the denoiser is not even fetched would seem to need a third of what it does."""
    save_file({"one": torch.zeros(1000)}, tmp_path / "denoiser.safetensors")
    found = checkpoint.find(row, baked, Silent())
    plain = checkpoint.find(replace(row, denoiser=None), baked, Silent())
    assert set(found.parts) == {"text_encoder", "text_encoder_2", "denoiser", "vae"}
    assert set(plain.parts) == {"text_encoder", "text_encoder_2", "unet", "vae"}
    assert found.parts["denoiser"].weights == 1000
    assert found.parts["denoiser"].nbytes == (tmp_path / "denoiser.safetensors").stat().st_size


def test_a_damaged_denoiser_is_refused_when_it_is_found(
    row: PipelineSpec, baked: ModelOptions, tmp_path: Path
) -> None:
    """By its header, as the parts of a checkpoint are."""
    (tmp_path / "denoiser.safetensors").write_bytes(b"cut")
    with pytest.raises(CapacityError, match="cut short"):
        checkpoint.find(row, baked, Silent())


@pytest.mark.parametrize("beside", [{"denoiser": FILE}, {"lightning_lora": FILE}], ids=str)
def test_what_cannot_be_had_costs_no_other_model(
    beside: dict[str, str], row: PipelineSpec, baked: ModelOptions
) -> None:
    """Nor does it let the others wait while it is fetched, a model short."""
    models = ModelManager(
        Catalog([LIGHT, replace(replace(row, denoiser=None), **beside)], "light"),  # type: ignore[arg-type]
        baked,
        has_gpu=lambda: False,
        device_bytes=lambda: 10**12,
        find=find,
    )
    light = models.acquire("light")
    with pytest.raises(CapacityError, match="cannot be had"):
        models.acquire(row.name)
    assert models.status().loaded == ("light",)
    assert models.acquire("light") is light


def test_a_load_looks_nowhere_else_than_where_it_was_found(
    row: PipelineSpec, baked: ModelOptions, tmp_path: Path, sdxl_checkpoint: Path
) -> None:
    """The hub is asked once; a branch may have moved since."""
    weights = load_file(sdxl_checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    file = tmp_path / "denoiser.safetensors"
    save_file({name: weight * 1.25 for name, weight in weights.items()}, file)
    found = checkpoint.find(row, baked, Silent())
    here = ModelOptions(local_only=True, found=found)  # without the folder that it came from
    assert locate(FILE, here) == file
    assert checkpoint.find(row, here, Silent()) is found
    unet = load_components(row, here, Silent()).unet
    assert torch.equal(unet.conv_in.weight, (weights["conv_in.weight"] * 1.25).float())


def test_every_byte_that_is_promised_is_told(row: PipelineSpec, baked: ModelOptions, tmp_path: Path) -> None:
    """Or the load would end at a third of its progress."""
    weights = load_file(checkpoint.find_checkpoint(row, baked) / "unet/diffusion_pytorch_model.safetensors")
    save_file(weights, tmp_path / "denoiser.safetensors")
    found = checkpoint.find(row, baked, Silent())

    class Counted(Silent):
        read = 0

        def bytes(self, done: int, total: int) -> None:
            self.read += total if done == total else 0

    report = Counted()
    load_components(row, replace(baked, found=found), report)
    assert report.read == sum(part.nbytes for part in found.parts.values())


def test_which_files_a_row_names() -> None:
    """They are what a download fetches beside the checkpoint."""
    assert named(catalog("sdxl-lightning").default) == [
        "ByteDance/SDXL-Lightning/sdxl_lightning_4step_unet.safetensors"
    ]
    assert named(catalog("sdxl-lightning-lora").default) == [
        "ByteDance/SDXL-Lightning/sdxl_lightning_4step_lora.safetensors"
    ]
    assert named(catalog("qwen-image-edit-2509").default) == []
    few = catalog("qwen-image-edit-2509", lightning={"enabled": True, "steps": 4}).default
    assert ["4steps" in text for text in named(few)] == [True]
