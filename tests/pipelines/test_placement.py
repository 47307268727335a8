"""Weights that wait elsewhere than where they are used give the same pictures.

On a CPU both places are the same memory: what is tested is who is brought, when, and that nothing is missed.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.spec import PipelineSpec
from pipelines.loading import sizes_on_card
from pipelines.options import ModelOptions, Precision, Silent, Tuning
from pipelines.placement import HEADROOM, OneAtATime, parts_on_host, stream
from pipelines.precision import Role
from pipelines.qwen_image import QwenImageEdit, load_edit_plus
from pipelines.shards import survey
from tests.pipelines.edits import ask, edit

GIB = 2**30


def loaded(spec: PipelineSpec, options: ModelOptions, **how: Any) -> QwenImageEdit:
    return load_edit_plus(spec, replace(options, **how), Silent())


@pytest.mark.parametrize(
    "how",
    [
        {"tuning": Tuning(offload="model")},
        {"tuning": Tuning(offload="sequential")},
    ],
    ids=["model", "sequential"],
)
def test_offloaded_weights_give_the_same_picture(
    how: dict[str, Any], spec: PipelineSpec, options: ModelOptions, pipeline: QwenImageEdit
) -> None:
    """Also of the parts that a family calls by themselves: the language model and its vision tower."""
    request = ask(spec, cfg=3.0)
    assert edit(loaded(spec, options, **how), request) == edit(pipeline, request)


def test_quantized_weights_take_turns_too(spec: PipelineSpec, options: ModelOptions) -> None:
    """OFFLOAD=model is what 8bit is combined with on small cards."""
    eight = Precision(mode="8bit", eight_bit="torchao-int8")
    moved = loaded(spec, options, precision=eight, tuning=Tuning(offload="model"))
    still = loaded(spec, options, precision=eight)
    for request in (ask(spec), ask(spec, 1)):
        assert edit(moved, request) == edit(still, request)


def test_sequential_weights_are_nowhere_but_on_the_host(spec: PipelineSpec, options: ModelOptions) -> None:
    """Between two layers the device holds none of them; a hook that was missed would leave some."""
    parts = loaded(spec, options, tuning=Tuning(offload="sequential"))._parts
    for model in (parts.transformer, parts.text_encoder):
        assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert {weight.device.type for weight in parts.vae.parameters()} == {"cpu"}


class Elsewhere(nn.Module):
    """A model that remembers where it was told to be."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.places: list[str] = []

    def to(self, *args: Any, **kwargs: Any) -> "Elsewhere":
        self.places.append(str(args[0]))
        return self


def test_one_model_is_present_at_a_time() -> None:
    """The one before leaves before the next arrives; calling the present one again moves nothing."""
    turns = OneAtATime(torch.device("cuda"))
    text, denoiser = Elsewhere(), Elsewhere()
    turns.add(text)
    turns.add(denoiser)
    rows = torch.zeros(1, 4)
    for model in (text, text, denoiser, denoiser, denoiser, text):
        model.inner(rows)  # a part alone: the model's own forward is never called
    assert text.places == ["cpu", "cuda", "cpu", "cuda"]
    assert denoiser.places == ["cpu", "cuda", "cpu"]
    assert turns.moves == 3


def test_a_streamed_layer_has_its_weights_while_it_runs() -> None:
    """And on the device nothing of them before and after."""
    layer = nn.Sequential(nn.Linear(4, 4))
    rows = torch.ones(1, 4)
    expected = layer(rows)
    stream(layer, torch.device("cpu"))
    assert torch.equal(layer[0](rows), expected)
    assert {weight.device.type for weight in layer.parameters()} == {"meta"}


def test_parts_are_weighed_as_they_were_found(checkpoint: Path) -> None:
    """Before anything is read, whatever format the files have; half of what 8bit is for."""
    parts = survey(checkpoint)
    whole = sizes_on_card(parts, frozenset())
    assert sum(whole.values()) == 2 * sum(part.weights for part in parts.values())
    assert set(whole) == {"denoiser", "text", "vae"}
    eight = sizes_on_card(parts, frozenset({"denoiser", "text"}))
    assert eight == {role: size if role == "vae" else size // 2 for role, size in whole.items()}


SIZES: dict[Role, int] = {"denoiser": 21 * GIB, "text": 9 * GIB, "vae": GIB}


@pytest.mark.parametrize(
    ("free", "host"),
    [
        (40 * GIB, set()),
        (31 * GIB + HEADROOM, set()),
        (31 * GIB + HEADROOM - 1, {"text"}),
        (24 * GIB, {"text"}),
        (22 * GIB, {"text", "denoiser"}),
        (0, {"text", "denoiser"}),
    ],
)
def test_what_does_not_fit_stays_on_the_host(free: int, host: set[str]) -> None:
    """The text encoder first: it runs once a request, the transformer at every step."""
    assert parts_on_host(SIZES, free) == host
