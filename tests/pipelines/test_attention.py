"""The operator's choice of attention is tried when a model is loaded, not by the first caller."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from torch import nn

from core.errors import CapacityError
from core.spec import PipelineSpec
from pipelines.attention import NAMES, set_attention, try_attention
from pipelines.options import ModelOptions, Silent, Tuning
from pipelines.qwen_image import QwenImageEdit
from pipelines.qwen_loading import Components, load_components
from pipelines.qwen_text import NUMBERED_PICTURES
from tests.pipelines.edits import ask, edit, pixels

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def native_afterwards() -> Iterator[None]:
    """diffusers keeps the choice for the whole process."""
    with attention_backend("native"):
        yield


def test_another_attention_gives_the_same_picture(
    parts: Components, spec: PipelineSpec, pipeline: QwenImageEdit
) -> None:
    """torch's plain formula in place of its fused kernels."""
    transformer = copy.deepcopy(parts.transformer)
    try_attention("_native_math", CPU, torch.float32)
    set_attention(transformer, "_native_math")
    used = {block.attn.processor._attention_backend for block in transformer.transformer_blocks}
    assert used == {AttentionBackendName._NATIVE_MATH}
    models = {"transformer": transformer, "vae": parts.vae, "text_encoder": parts.text_encoder}
    other = QwenImageEdit(
        Components(
            **models, processor=parts.processor, solver=parts.solver, device=parts.device, dtype=parts.dtype
        ),
        NUMBERED_PICTURES,
        cache_bytes=0,
    )
    request = ask(spec)
    assert abs(pixels(edit(other, request)) - pixels(edit(pipeline, request))).max() <= 1


def test_an_unknown_name_is_answered_with_the_known() -> None:
    """Nobody knows these names by heart."""
    with pytest.raises(CapacityError, match="_native_math") as caught:
        try_attention("flahs", CPU, torch.float32)
    assert all(name in caught.value.message for name in NAMES)
    assert not caught.value.retryable


def test_programs_of_the_model_hub_are_not_among_them() -> None:
    """A kernel that is fetched is code that is fetched."""
    assert not any("hub" in name for name in NAMES)
    with pytest.raises(CapacityError, match="ATTENTION_BACKEND"):
        try_attention("flash_hub", CPU, torch.float32)


@pytest.mark.parametrize("name", ["_native_flash", "xformers", "sage"])
def test_one_that_does_not_work_here_is_refused(name: str) -> None:
    """The first takes no mask, the others are not installed; requests of unequal prompts would fail."""
    with pytest.raises(CapacityError, match=f"ATTENTION_BACKEND={name} does not work here"):
        try_attention(name, CPU, torch.float32)


def test_it_is_refused_before_anything_is_found_or_read(spec: PipelineSpec) -> None:
    """Text encoders have gigabytes, and this is known without them."""
    nowhere = ModelOptions(model_dir=Path("nowhere"), tuning=Tuning(attention="xformers"))
    with pytest.raises(CapacityError, match="ATTENTION_BACKEND=xformers does not work here"):
        load_components(spec, nowhere, Silent(), pipeline_class="QwenImageEditPlusPipeline")


def test_a_model_that_would_ignore_the_choice_is_refused() -> None:
    """A setting without an effect is worse than an error."""
    with pytest.raises(CapacityError, match="unset it"):
        set_attention(nn.Linear(2, 2), "native")
