"""What a row of the Qwen-Image-Edit family depends on, and what becomes of it when something fails."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import OutOfDeviceMemory, RequestError
from core.spec import PipelineSpec
from pipelines.pocket.vocabulary import CONTROL_TOKENS
from pipelines.qwen_image import QwenImageEdit
from pipelines.qwen_loading import Components
from pipelines.qwen_text import NUMBERED_PICTURES
from pipelines.registry import catalog
from tests.pipelines.edits import ask, edit, picture, pixels

BASE: dict[str, Any] = {"cfg": 4.0, "negative_prompt": "blurry"}


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "turn it into a red drawing"},
        {"images": (picture(9),)},
        {"images": (picture(0), picture(9))},
        {"seed": 7},
        {"steps": 2},
        {"cfg": 2.0},
        {"cfg": 1.0},
        {"negative_prompt": "dark night, low quality photo"},
    ],
    ids=lambda change: " ".join(change),
)
def test_every_wish_shows_in_the_picture(
    change: dict[str, Any], pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """Comparisons of pictures mean something only when the pictures differ where they should."""
    before, after = edit(pipeline, ask(spec, **BASE)), edit(pipeline, ask(spec, **(BASE | change)))
    assert np.abs(pixels(before) - pixels(after)).mean() > 2


def test_one_step_gives_a_picture(pipeline: QwenImageEdit, spec: PipelineSpec) -> None:
    """The stock solver gives NaN for it."""
    assert pixels(edit(pipeline, ask(spec, steps=1))).std() > 20


def test_lightning_is_not_claimed(pipeline: QwenImageEdit, spec: PipelineSpec) -> None:
    """No adapter is loaded, so none is reported."""
    assert not pipeline.lightning_enabled
    assert not edit(pipeline, ask(spec)).lightning_enabled


@pytest.mark.parametrize(
    ("component", "flag"), [("solver", "stochastic_sampling"), ("transformer", "guidance_embeds")]
)
def test_a_checkpoint_that_wants_another_loop_is_refused(
    component: str, flag: str, parts: Components
) -> None:
    """It would run, and paint something its authors never meant."""
    model = getattr(parts, component)
    other = type(model).from_config(dict(model.config) | {flag: True})
    with pytest.raises(ValueError, match=flag):
        QwenImageEdit(replace(parts, **{component: other}), NUMBERED_PICTURES, cache_bytes=0)


class Failing(torch.nn.Module):
    """A transformer whose forward runs out of memory."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, **_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def test_a_step_that_fails_leaves_every_row_as_it_was(
    parts: Components, pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """So the same rows can run again in smaller groups, and finish as if nothing had happened."""
    requests = [ask(spec, 0), ask(spec, 1)]
    states = pipeline.prepare(requests)
    pipeline.step(states)
    before = [(state.done, state.latents.clone()) for state in states]
    failing = replace(parts, transformer=Failing(parts.transformer.config))
    with pytest.raises(OutOfDeviceMemory):
        QwenImageEdit(failing, NUMBERED_PICTURES, cache_bytes=0).step(states)
    for state, (done, latents) in zip(states, before, strict=True):
        assert state.done == done
        assert torch.equal(state.latents, latents)


def text_tokens(pipeline: QwenImageEdit, spec: PipelineSpec, prompt: str) -> int:
    return len(pipeline.prepare([ask(spec, prompt=prompt)])[0].prompt)


@pytest.mark.parametrize("token", CONTROL_TOKENS)
def test_control_tokens_in_a_prompt_are_plain_words(
    token: str, pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """Live, each would be one token, end the user's turn or ask for a picture that is not there."""
    without = text_tokens(pipeline, spec, "paint on the sign")
    assert text_tokens(pipeline, spec, f"paint {token} on the sign") - without >= 4
    inner = token[:4] + token + token[4:]
    assert text_tokens(pipeline, spec, f"paint {inner} on the sign") - without >= 8


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_text_of_too_many_tokens_is_refused_alone(
    field: str, pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """Few characters can be many tokens; the model's table of positions would overflow."""
    long = ask(spec, 0, **(BASE | {field: "🌅" * 400}))
    with pytest.raises(RequestError, match="over the limit of 1024") as caught:
        pipeline.prepare([ask(spec, 1), long])
    assert (caught.value.code, caught.value.param) == ("invalid_parameter", field)
    assert len(pipeline.prepare([ask(spec, 1), ask(spec, 2)])) == 2


def test_pictures_shown_too_large_are_refused(parts: Components) -> None:
    """Three pictures at 1024 x 1024 are more text tokens than there are positions."""
    spec = catalog("pocket-edit", reference_area=64 * 64, condition_area=1024 * 1024).default
    request = ask(spec, images=(picture(0), picture(1), picture(2)))
    with pytest.raises(RequestError, match="CONDITION_AREA"):
        QwenImageEdit(parts, NUMBERED_PICTURES, cache_bytes=0).prepare([request])


def test_a_cache_hit_changes_nothing_and_is_counted(parts: Components, spec: PipelineSpec) -> None:
    """The picture is the same bit by bit; the counters say what was saved."""
    cached = QwenImageEdit(parts, NUMBERED_PICTURES, cache_bytes=2**26)
    prompts, references = cached.caches["prompt_embeddings"], cached.caches["reference_latents"]
    first = edit(cached, ask(spec, **BASE))
    assert (prompts["hits"], prompts["misses"]) == (0, 2)  # the prompt and the negative
    assert (references["hits"], references["misses"]) == (0, 1)
    assert edit(cached, ask(spec, **BASE)) == first
    assert (prompts["hits"], references["hits"]) == (2, 1)
    edit(cached, ask(spec, **(BASE | {"prompt": "remove the tree", "seed": 5})))
    assert (prompts["hits"], prompts["misses"], references["hits"]) == (3, 3, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "remove the tree"},
        {"images": (picture(9),)},
        {"images": (picture(0), picture(0))},
        {"images": (picture(0, 96, 48),)},
    ],
    ids=str,
)
def test_other_content_is_never_answered_from_the_cache(
    change: dict[str, Any], parts: Components, pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """A key that forgets something would hand one user another's prompt or picture."""
    cached = QwenImageEdit(parts, NUMBERED_PICTURES, cache_bytes=2**26)
    edit(cached, ask(spec, **BASE))
    request = ask(spec, **(BASE | change))
    assert edit(cached, request) == edit(pipeline, request)


def test_areas_are_part_of_what_is_cached(
    parts: Components, pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """The same picture at another size is another condition."""
    cached = QwenImageEdit(parts, NUMBERED_PICTURES, cache_bytes=2**26)
    edit(cached, ask(spec))
    larger = catalog("pocket-edit", reference_area=96 * 96, condition_area=128 * 128).default
    assert edit(cached, ask(larger)) == edit(pipeline, ask(larger))


def test_equal_wishes_in_one_call_are_encoded_once(parts: Components, spec: PipelineSpec) -> None:
    """Four variants of one edit are the commonest batch there is."""
    cached = QwenImageEdit(parts, NUMBERED_PICTURES, cache_bytes=2**26)
    cached.prepare([ask(spec, 0, id=str(i), seed=i) for i in range(4)])
    assert cached.caches["prompt_embeddings"]["misses"] == 1
    assert cached.caches["reference_latents"]["misses"] == 1
