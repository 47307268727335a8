"""``docs/models.md`` and README's list say what the registry says, and nothing that nobody knows."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from core.request import Task
from core.spec import PipelineSpec
from pipelines.registry import SPECS

ROOT = Path(__file__).resolve().parent.parent
ARTIST = PipelineSpec(
    name="artist",
    factory="studio:load",
    source="org/artist",
    aliases=("org/painter",),
    tasks=frozenset({Task.GENERATE, Task.EDIT}),
    steps=30,
    cfg=5.5,
    output_area=1328 * 1328,
    max_images=1,
    strength=0.6,
    masks=True,
    step_cache=True,
    licence="CC-BY-4.0",
)
FEW = replace(ARTIST, steps=8, cfg=1.0, lightning_steps=8)


@pytest.fixture(scope="module")
def models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("models", ROOT / "docs/models.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(page: str) -> dict[tuple[str, str], dict[str, str]]:
    """Of every table: what stands under each head, by the section and the model."""
    found = {}
    for section in page.split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
        heads, _, *lines = [[cell.strip() for cell in line] for line in lines]
        for line in lines:
            found[title, line[0].strip("`")] = dict(zip(heads, line, strict=True))
    return found


def test_the_documents_are_current(models: ModuleType) -> None:
    """A table written by hand is wrong after the next model; `make fix` writes these."""
    rows, front = models.registered(), (ROOT / "README.md").read_text()
    assert models.page(rows) == (ROOT / "docs/models.md").read_text()
    assert models.readme(front, rows) == front
    assert "](docs/models.md)" in front


def test_a_model_that_is_missing_is_noticed(models: ModuleType) -> None:
    """The comparison above must be able to fail."""
    rows, front = models.registered()[:-1], (ROOT / "README.md").read_text()
    assert models.page(rows) != (ROOT / "docs/models.md").read_text()
    assert models.readme(front, rows) != front
    assert models.readme(models.readme(front, rows), models.registered()) == front
    with pytest.raises(ValueError, match="markers"):
        models.readme("# batchmux\n", rows)


def test_every_model_is_in_every_table_of_its_kind(models: ModuleType) -> None:
    """A builder of a new row writes nothing here."""
    found = cells(models.page(models.registered()))
    kinds = {True: (models.EVERY, models.LOOKING), False: (models.EVERY, *models.PAINTING)}
    assert set(found) == {
        (title, spec.name) for spec in SPECS for title, _, _ in kinds[spec.vision is not None]
    }


def test_what_a_row_says_is_what_is_shown(models: ModuleType) -> None:
    """In effect and, in parentheses, without the Lightning LoRA."""
    found = cells(models.page([models.Row(ARTIST, FEW)]))
    row = {head: cell for (_, _), line in found.items() for head, cell in line.items()}
    assert found["What they do", "artist"]["Task"] == "edit, generate"
    assert found["What they do", "artist"]["Aliases"] == "`org/painter`"
    assert found["Defaults", "artist"] == {
        "Model": "`artist`",
        "Steps": "8 (30)",
        "CFG": "1 (5.5)",
        "Area": "1328²",
        "Strength": "0.6",
    }
    assert (found["Limits", "artist"]["Side"], found["Limits", "artist"]["Pictures"]) == ("64 to 2048", "1")
    assert (row["Mask"], row["Step cache"]) == ("yes", "without Lightning")
    assert row["Few steps"] == "Lightning LoRA, 8 steps"
    plain = cells(models.page([models.Row(ARTIST, ARTIST)]))
    assert plain["Defaults", "artist"]["Steps"] == "30"
    assert plain["What a request may add", "artist"]["Step cache"] == "yes"
    distilled = cells(models.page([models.Row(FEW, FEW)]))["What a request may add", "artist"]
    assert (distilled["Few steps"], distilled["Step cache"]) == ("distilled", "no")


def test_what_nobody_knows_is_said(models: ModuleType) -> None:
    """No figure is made up for a family that was never counted, nor for a peak that was never measured."""
    found = cells(models.page([models.Row(ARTIST, ARTIST)]))["Precision and memory", "artist"]
    assert {found[part] for part in ("Denoiser", "Text encoders", "Autoencoder", "Card for bf16")} == {
        "unknown"
    }
    assert found["Peak"] == "not measured"


def qwen() -> tuple[Any, list[Any], Any]:
    """Denoiser, text encoders and autoencoder of Qwen-Image, as its published configurations have them."""
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text: dict[str, Any] = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    }
    sight = {"hidden_size": 1280, "out_hidden_size": 3584, "intermediate_size": 3420, "depth": 32}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=sight, tie_word_embeddings=False)
    return (
        QwenImageTransformer2DModel(),
        [Qwen2_5_VLForConditionalGeneration(config)],
        AutoencoderKLQwenImage(),
    )


def sdxl() -> tuple[Any, list[Any], Any]:
    """The same of stable-diffusion-xl-base-1.0."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    denoiser = UNet2DConditionModel(
        sample_size=128,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        cross_attention_dim=2048,
        attention_head_dim=[5, 10, 20],
        transformer_layers_per_block=[1, 2, 10],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    small = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "projection_dim": 768}
    large = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "projection_dim": 1280}
    texts = [
        CLIPTextModel(CLIPTextConfig(num_attention_heads=12, **small)),
        CLIPTextModelWithProjection(CLIPTextConfig(num_attention_heads=20, **large)),
    ]
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
    )
    return denoiser, texts, autoencoder


@pytest.mark.parametrize(("module", "build"), [("pipelines.qwen_image", qwen), ("pipelines.sdxl", sdxl)])
def test_parameters_are_counted_in_the_real_classes(models: ModuleType, module: str, build: Any) -> None:
    """Sizes of weights are computed from these; built without memory, on the meta device."""
    import torch

    with torch.device("meta"):
        denoiser, texts, autoencoder = build()

    def count(model: Any) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    counted = count(denoiser), sum(map(count, texts)), count(autoencoder)
    assert counted == models.FAMILIES[module].parameters
