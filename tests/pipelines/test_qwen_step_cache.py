"""Steps that reuse an earlier one's blocks: as upstream decides, row by row, and only where asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

from core.errors import OutOfDeviceMemory, RequestError
from core.request import InferenceRequest
from core.spec import PipelineSpec
from pipelines.qwen_image import QwenImageEdit
from pipelines.qwen_loading import Components
from pipelines.qwen_text import NUMBERED_PICTURES
from pipelines.registry import SPECS
from tests.pipelines.edits import ask, edit, picture, pixels, run_joining, run_to_end
from tests.pipelines.test_parity import latent_error, with_positions
from tests.pipelines.test_qwen_inpaint import left, mask

TOLERANCE = 5e-5  # as without a cache; latents reach 7
VISIBLE = 100  # times the tolerance: what reusing one step too many or too few does
STEPS = 20


def latents(pipeline: QwenImageEdit, request: InferenceRequest) -> torch.Tensor:
    states = pipeline.prepare([request])
    run_to_end(pipeline, states)
    return states[0].latents


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@contextmanager
def rows_through_the_last_block(parts: Components) -> Iterator[list[int]]:
    """How many rows each call of the last block has."""
    rows: list[int] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        rows.append(len(kwargs["hidden_states"]))

    hook = parts.transformer.transformer_blocks[-1].register_forward_pre_hook(note, with_kwargs=True)
    yield rows
    hook.remove()


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("threshold", [0.05, 0.12])
def test_it_reuses_what_upstreams_cache_reuses(
    threshold: float, cfg: float, stock_plus: Any, pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """The same picture as the stock pipeline with its cache on; without it the pictures differ visibly."""
    request = ask(spec, steps=STEPS, cfg=cfg, step_cache=threshold)
    stock = with_positions(stock_plus)
    without = latent_error(stock, pipeline, request)
    stock.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    assert latent_error(stock, pipeline, request) < TOLERANCE
    assert without > VISIBLE * TOLERANCE


def test_placement_finds_the_blocks_during_a_forward(
    parts: Components, pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """OFFLOAD=model brings a transformer by its parameters, inside its first call: none may be hidden."""
    seen: list[set[int]] = []

    def note(module: torch.nn.Module, args: Any) -> None:
        seen.append({id(weight) for weight in module.parameters()})

    everything = {id(weight) for weight in parts.transformer.parameters()}
    hook = parts.transformer.register_forward_pre_hook(note)
    edit(pipeline, ask(spec, steps=2, step_cache=0.12))
    hook.remove()
    assert seen == [everything] * 2


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_tiny_threshold_changes_nothing(cfg: float, pipeline: QwenImageEdit, spec: PipelineSpec) -> None:
    """Bit by bit: a step that is computed is computed as ever."""
    request = ask(spec, steps=8, cfg=cfg)
    assert torch.equal(latents(pipeline, request), latents(pipeline, replace(request, step_cache=1e-6)))


@pytest.mark.parametrize(
    ("threshold", "at_most", "decibels"), [(0.05, 0.75, 48), (0.12, 0.5, 39)], ids=["careful", "bold"]
)
def test_fewer_blocks_run_for_nearly_the_same_picture(
    threshold: float,
    at_most: float,
    decibels: float,
    parts: Components,
    pipeline: QwenImageEdit,
    spec: PipelineSpec,
) -> None:
    """Peak signal to noise against the picture of all blocks. Measured 52 dB at 14 of 20 steps, 43 at 9."""
    request = ask(spec, steps=STEPS, width=96, height=96)
    with rows_through_the_last_block(parts) as rows:
        full = pixels(edit(pipeline, request))
        assert len(rows) == STEPS
        rows.clear()
        cached = pixels(edit(pipeline, replace(request, step_cache=threshold)))
    assert 1 < len(rows) <= at_most * STEPS
    error = np.mean(np.square(full - cached), dtype=np.float64)
    assert error > 0
    assert 10 * np.log10(255**2 / error) > decibels


def test_bf16_reuses_steps_too(bf16_pipeline: QwenImageEdit, spec: PipelineSpec) -> None:
    """The format of a GPU: a masked, guided edit in it, with a third of its steps and more reused."""
    request = ask(spec, steps=STEPS, cfg=3.0, mask=mask(left), width=96, height=96)
    counts = bf16_pipeline.caches["steps"]
    full, cached = (edit(bf16_pipeline, replace(request, step_cache=value)) for value in (0.0, 0.12))
    assert counts["hits"] > 2 * STEPS / 3
    assert counts["hits"] + counts["misses"] == 2 * STEPS
    error = np.mean(np.square(pixels(full) - pixels(cached)), dtype=np.float64)
    assert 10 * np.log10(255**2 / error) > 35


def mixed(spec: PipelineSpec) -> list[InferenceRequest]:
    """Thresholds, steps, guidance and masks of their own; the last row asks for no cache."""
    return [
        ask(spec, 0, steps=12, step_cache=0.1),
        ask(spec, 1, steps=STEPS, step_cache=0.2, cfg=4.0, negative_prompt="dark night, low quality photo"),
        ask(spec, 2, steps=9, step_cache=0.05, mask=mask(left)),
        ask(spec, 3, steps=8, cfg=2.0),
    ]


@pytest.fixture(scope="module")
def without_zero_cond_t(parts: Components) -> QwenImageEdit:
    """As in 2509: no second set of rows for references at t = 0."""
    transformer = QwenImageTransformer2DModel.from_config(
        dict(parts.transformer.config) | {"zero_cond_t": False}
    )
    transformer.load_state_dict(parts.transformer.state_dict())
    return QwenImageEdit(replace(parts, transformer=transformer.eval()), NUMBERED_PICTURES, cache_bytes=0)


@pytest.mark.parametrize("model", ["pipeline", "without_zero_cond_t"])
@pytest.mark.parametrize("ticks", [(0, 0, 0, 0), (0, 1, 1, 3)], ids=["together", "joining"])
def test_each_row_decides_as_it_would_alone(
    model: str, ticks: tuple[int, ...], request: pytest.FixtureRequest, spec: PipelineSpec
) -> None:
    """Whoever else is computed or reused in the same step, and whenever each one joined."""
    pipeline = request.getfixturevalue(model)
    counts = pipeline.caches["steps"]
    before = dict(counts)
    together = run_joining(pipeline, mixed(spec), ticks)
    middle = dict(counts)
    for state, wish in zip(together, mixed(spec), strict=True):
        assert distance(state.latents, latents(pipeline, wish)) < TOLERANCE
    reused = {name: middle[name] - before[name] for name in counts}
    assert reused == {name: counts[name] - middle[name] for name in counts}
    assert min(reused.values()) > 5


def test_a_decision_shared_by_rows_would_be_seen(pipeline: QwenImageEdit, spec: PipelineSpec) -> None:
    """Control: with another's threshold the first row gives another picture."""
    first, second, *_ = mixed(spec)
    swapped = replace(first, step_cache=second.step_cache)
    assert distance(latents(pipeline, first), latents(pipeline, swapped)) > VISIBLE * TOLERANCE


def test_only_rows_that_need_them_go_through_the_blocks(
    parts: Components, pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """That is the saving in a batch: never all rows for the sake of one."""
    requests = [ask(spec, 0, steps=STEPS, step_cache=0.1), ask(spec, 1, steps=STEPS)]
    with rows_through_the_last_block(parts) as rows:
        run_to_end(pipeline, pipeline.prepare(requests))
    assert len(rows) == STEPS
    assert set(rows) == {1, 2}
    assert rows[0] == 2


@pytest.mark.parametrize("reusing", [False, True])
def test_a_step_that_fails_leaves_the_stores_as_they_were(
    reusing: bool, parts: Components, pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """Then the same rows finish as if nothing had happened; and the model has its blocks back."""
    names = [name for name, _ in parts.transformer.named_modules()]
    requests = [
        ask(spec, 0, steps=12, step_cache=0.1 if reusing else 1e-6),
        ask(spec, 1, steps=12, step_cache=0.1, cfg=4.0),
    ]
    states = pipeline.prepare(requests)
    for _ in range(5):
        pipeline.step(states)
    before = [(state.done, state.stored, state.latents) for state in states]
    counts = dict(pipeline.caches["steps"])

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    hook = parts.transformer.norm_out.register_forward_pre_hook(fail)
    with pytest.raises(OutOfDeviceMemory):
        pipeline.step(states)
    hook.remove()
    assert [(state.done, state.stored, state.latents) for state in states] == before
    assert pipeline.caches["steps"] == counts
    assert [name for name, _ in parts.transformer.named_modules()] == names
    run_to_end(pipeline, states)
    for state, request in zip(states, requests, strict=True):
        assert distance(state.latents, latents(pipeline, request)) < TOLERANCE


def test_blocks_keep_their_names_outside_the_forward(
    parts: Components, pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """Adapters find layers by name, and offloading moves them: both between steps."""
    before = dict(parts.transformer.named_parameters())
    states = pipeline.prepare([ask(spec, 0, step_cache=0.5)])
    pipeline.step(states)
    after = dict(parts.transformer.named_parameters())
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)


def test_a_poisoned_row_stays_alone(pipeline: QwenImageEdit, spec: PipelineSpec) -> None:
    """Its changes are no numbers; its neighbour's decisions are the neighbour's."""
    requests = [ask(spec, i, steps=12, step_cache=0.1) for i in range(2)]
    states = pipeline.prepare(requests)
    for _ in range(4):
        pipeline.step(states)
    states[0].latents = states[0].latents * float("nan")
    run_to_end(pipeline, states)
    assert torch.isnan(states[0].latents).all()
    assert distance(states[1].latents, latents(pipeline, requests[1])) < TOLERANCE


def test_a_finished_row_holds_no_store(pipeline: QwenImageEdit, spec: PipelineSpec) -> None:
    """It is large, and decoding comes next."""
    states = pipeline.prepare([ask(spec, 0, step_cache=0.5, cfg=2.0), ask(spec, 1)])
    pipeline.step(states)
    assert all(states[0].stored)
    assert states[1].stored == (None, None)
    run_to_end(pipeline, states)
    assert states[0].stored == (None, None)


def test_references_take_no_room_in_what_is_stored_of_the_other_blocks(
    pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """Only the canvas is ever read of them."""
    (state,) = pipeline.prepare([ask(spec, 0, step_cache=0.5, images=(picture(1), picture(2)))])
    pipeline.step([state])
    stored, _ = state.stored
    assert stored is not None
    assert len(stored.rest) == len(state.latents)
    assert len(stored.first) == len(state.latents) + len(state.references)


def test_rows_that_do_not_ask_leave_the_transformer_alone(
    parts: Components, pipeline: QwenImageEdit, spec: PipelineSpec
) -> None:
    """The usual request must not pay for what it did not ask for."""
    counts = dict(pipeline.caches["steps"])
    blocks = parts.transformer.transformer_blocks
    seen = []
    hook = blocks[0].register_forward_pre_hook(
        lambda *_: seen.append(parts.transformer.transformer_blocks is blocks)
    )
    edit(pipeline, ask(spec, 0))
    hook.remove()
    assert seen == [True] * 4
    assert pipeline.caches["steps"] == counts


def test_every_row_of_this_family_offers_it_and_few_steps_refuse_it(spec: PipelineSpec) -> None:
    """Lightning's steps are too unlike each other."""
    qwen = [row for row in SPECS if row.factory.startswith("pipelines.qwen_image:")]
    assert qwen
    assert all(row.step_cache for row in qwen)
    with pytest.raises(RequestError, match="Lightning"):
        ask(replace(spec, lightning_steps=4), step_cache=0.1)
