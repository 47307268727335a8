"""Checkpoints are read from the layout of the hub, and only as data."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import CapacityError
from core.spec import PipelineSpec
from pipelines.options import ModelOptions, Silent
from pipelines.qwen_loading import Components, load_components, read_processor
from pipelines.registry import catalog
from tests.pipelines.edits import PROMPTS

PLUS = "QwenImageEditPlusPipeline"


quiet = Silent()


class Noted(Silent):
    """A report that remembers its stages."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int, int]] = []

    def stage(self, name: str, number: int, total: int) -> None:
        self.stages.append((name, number, total))


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def test_a_cpu_computes_in_fp32(parts: Components) -> None:
    """PRECISION_MODE=bf16 is about GPUs."""
    for model in (parts.transformer, parts.vae, parts.text_encoder):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        assert not model.training
        assert not any(weight.requires_grad for weight in model.parameters())


def test_progress_names_each_component(spec: PipelineSpec, options: ModelOptions) -> None:
    """Loading the real weights takes minutes; a person wants to know where it is."""
    noted = Noted()
    load_components(spec, options, noted, pipeline_class=PLUS)
    names = ["checkpoint", "processor", "text_encoder", "transformer", "vae"]
    assert noted.stages == [(name, number, 5) for number, name in enumerate(names, start=1)]


def test_a_folder_can_stand_in_for_the_source(spec: PipelineSpec, copied: Path) -> None:
    """MODEL_DIR: weights that are already on the disk."""
    named = replace(spec, source="nobody/nothing")
    load_components(named, ModelOptions(model_dir=copied), quiet, pipeline_class=PLUS)


def test_a_folder_without_a_checkpoint_is_explained(spec: PipelineSpec, tmp_path: Path) -> None:
    """By the variable's name, without the path."""
    with pytest.raises(CapacityError, match="MODEL_DIR") as caught:
        load_components(spec, ModelOptions(model_dir=tmp_path), quiet, pipeline_class=PLUS)
    assert str(tmp_path) not in caught.value.message


def test_a_checkpoint_of_another_family_is_refused(spec: PipelineSpec, options: ModelOptions) -> None:
    """The first release's weights under its successors' template would paint, but wrongly."""
    with pytest.raises(CapacityError, match="make DEFAULT_MODEL and MODEL_DIR agree"):
        load_components(spec, options, quiet, pipeline_class="QwenImageEditPipeline")


def test_a_revision_of_what_has_none_is_refused(spec: PipelineSpec, copied: Path) -> None:
    """Ignored, it would let the operator believe in a pinned commit."""
    for options in (ModelOptions(revision="abc"), ModelOptions(revision="abc", model_dir=copied)):
        with pytest.raises(CapacityError, match="MODEL_REVISION"):
            load_components(spec, options, quiet, pipeline_class=PLUS)


def test_a_cache_folder_that_cannot_be_written_is_explained(spec: PipelineSpec, tmp_path: Path) -> None:
    """Containers often have a read-only home."""
    (tmp_path / "file").touch()
    with pytest.raises(CapacityError, match="set CACHE_DIR") as caught:
        load_components(spec, ModelOptions(cache_dir=tmp_path / "file"), quiet, pipeline_class=PLUS)
    assert str(tmp_path) not in caught.value.message


def test_local_only_asks_no_hub(tmp_path: Path) -> None:
    """And says which variables matter."""
    row = replace(catalog("qwen-image-edit-2509").default, source="batchmux-tests/not-cached@0123abc")
    with pytest.raises(CapacityError, match="LOCAL_ONLY"):
        load_components(row, ModelOptions(local_only=True), quiet, pipeline_class=PLUS)


def test_pickled_weights_are_never_read(spec: PipelineSpec, copied: Path) -> None:
    """A pickle can run code; only safetensors are accepted."""
    (weights,) = (copied / "vae").glob("*.safetensors")
    weights.unlink()
    torch.save({}, copied / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(CapacityError, match="vae holds no safetensors weights"):
        load_components(spec, ModelOptions(model_dir=copied), quiet, pipeline_class=PLUS)


def test_the_hubs_older_tokenizer_layout_means_the_same(copied: Path, processor: Any) -> None:
    """The hub's folders hold vocab.json and merges.txt, and name processors that need torchvision."""
    folder = copied / "tokenizer"
    state = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(state["model"]["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in state["model"]["merges"]))
    added = {str(token.pop("id")): token for token in state["added_tokens"]}
    names = [token["content"] for token in added.values()]
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "added_tokens_decoder": added,
                "additional_special_tokens": names[1:],
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "unk_token": None,
                "tokenizer_class": "Qwen2Tokenizer",
                "model_max_length": 131072,
            }
        )
    )
    file = copied / "processor" / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    settings |= {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    settings |= {"min_pixels": 3136, "max_pixels": 12845056, "data_format": "channels_first", "device": None}
    file.write_text(json.dumps(settings))
    read = read_processor(copied)
    text = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{PROMPTS[1]}<|im_end|>\n"
    assert read.tokenizer(text)["input_ids"] == processor.tokenizer(text)["input_ids"]
    assert type(read.image_processor) is type(processor.image_processor)
    assert read.image_processor.size == processor.image_processor.size
