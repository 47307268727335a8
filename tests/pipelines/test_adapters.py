"""Users' LoRAs come and go between rows, and the model is itself again whenever they are gone."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import CapacityError, RequestError
from core.pipeline import BatchKey
from core.request import InferenceRequest
from core.spec import PipelineSpec
from pipelines.lora_layers import adapted
from pipelines.options import ModelOptions
from pipelines.qwen_image import QwenImageEdit
from pipelines.qwen_loading import Components
from pipelines.qwen_text import NUMBERED_PICTURES
from pipelines.registry import catalog
from tests.pipelines import loras
from tests.pipelines.edits import ask, run_to_end

# Latents reach 7; measured: 4e-6 at most beside a merge by hand.
TOLERANCE = 5e-5
VISIBLE = 1000
A, B, BOTH = (("a", 1.0),), (("b", 0.5),), (("a", 1.0), ("b", 0.5))


class House:
    """A pocket pipeline of its own with LoRAs ``a`` and ``b``, and whatever else is in ``folder``."""

    def __init__(self, parts: Components, spec: PipelineSpec, folder: Path, most: int) -> None:
        self.original = parts.transformer
        self.folder, self.parts = folder, replace(parts, transformer=copy.deepcopy(parts.transformer))
        self.pairs = {
            name: loras.pairs_for(parts.transformer, seed=seed, where="transformer_blocks")
            for seed, name in enumerate("ab")
        }
        for name, pairs in self.pairs.items():
            loras.written(folder / f"{name}.safetensors", pairs)
        self.spec = replace(spec, adapters=frozenset({"a", "b", "other"}))
        self.options = ModelOptions(
            adapters={name: str(folder / f"{name}.safetensors") for name in self.spec.adapters},
            max_adapters=most,
        )
        self.pipeline = QwenImageEdit(self.parts, NUMBERED_PICTURES, 0, self.options)

    @property
    def counts(self) -> dict[str, int]:
        return self.pipeline.caches["loras"]

    def ask(self, adapters: Any = (), number: int = 0, **wishes: Any) -> InferenceRequest:
        return ask(self.spec, number, adapters=adapters, **wishes)

    def latents(self, adapters: Any = (), number: int = 0) -> torch.Tensor:
        states = self.pipeline.prepare([self.ask(adapters, number)])
        run_to_end(self.pipeline, states)
        return states[0].latents

    def merged(self, *scales: tuple[str, float]) -> torch.Tensor:
        """The latents of a model with the LoRAs in its weights."""
        model = copy.deepcopy(self.original)
        for name, scale in scales:
            loras.merge(model, self.pairs[name], scale)
        pipeline = QwenImageEdit(replace(self.parts, transformer=model), NUMBERED_PICTURES, 0)
        states = pipeline.prepare([self.ask()])
        run_to_end(pipeline, states)
        return states[0].latents


@pytest.fixture
def house(parts: Components, spec: PipelineSpec, tmp_path: Path) -> House:
    return House(parts, spec, tmp_path, most=4)


@pytest.fixture
def small(parts: Components, spec: PipelineSpec, tmp_path: Path) -> House:
    """Room for one."""
    return House(parts, spec, tmp_path, most=1)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("wanted", [A, B, BOTH, (("a", -1.0),)], ids=str)
def test_a_row_with_loras_is_that_of_a_merged_model(wanted: Any, house: House) -> None:
    """Each with its scale; without them the picture is another."""
    assert apart(house.latents(wanted), house.merged(*wanted)) < TOLERANCE
    assert apart(house.latents(wanted), house.latents()) > VISIBLE * TOLERANCE


def test_the_scale_of_one_row_does_not_stay_for_the_next(house: House) -> None:
    """It is set, not multiplied."""
    first = house.latents((("a", 0.25),))
    for scale in (2.0, 0.25):
        again = house.latents((("a", scale),))
    assert torch.equal(first, again)


def test_the_model_is_itself_between_them(house: House) -> None:
    """Bit for bit: a caller who asked for no LoRA must not see another's."""
    plain = house.latents()
    for wanted in (A, BOTH, B):
        house.latents(wanted)
        assert torch.equal(house.latents(), plain)


def test_the_model_is_itself_after_eviction(small: House) -> None:
    """And the LoRA is, after it was loaded again."""
    plain, first = small.latents(), small.latents(A)
    assert torch.equal(small.latents(B), small.latents(B))
    assert small.counts["entries"] == 1
    assert torch.equal(small.latents(), plain)
    assert torch.equal(small.latents(A), first)


def test_alternating_rows_give_what_each_gives_alone(small: House) -> None:
    """Two keys take turns on the device; each step runs under its own row's LoRAs."""
    wishes: tuple[Any, ...] = (A, B, (), BOTH)
    alone = [small.latents(wanted, number) for number, wanted in enumerate(wishes)]
    states = [small.pipeline.prepare([small.ask(w, number)])[0] for number, w in enumerate(wishes)]
    for _ in range(4):
        for state in states:
            small.pipeline.step([state])
    for state, expected in zip(states, alone, strict=True):
        assert torch.equal(state.latents, expected)


def test_rows_of_other_loras_share_no_forward(house: House) -> None:
    """One forward has one set of LoRAs: the key keeps them apart, and a step refuses to mix."""
    requests = [house.ask(wanted) for wanted in (A, B, (), (("a", 0.5),))]
    assert len({BatchKey.of(request) for request in requests}) == 4
    states = [house.pipeline.prepare([request])[0] for request in requests[:2]]
    with pytest.raises(ValueError, match="same adapters"):
        house.pipeline.step(states)


def test_rows_of_the_same_loras_share_one(house: House) -> None:
    """Batched as rows without any are."""
    requests = [house.ask(BOTH, number, steps=steps) for number, steps in enumerate((4, 2))]
    assert len({BatchKey.of(request) for request in requests}) == 1
    states = house.pipeline.prepare(requests)
    run_to_end(house.pipeline, states)
    assert apart(states[0].latents, house.latents(BOTH)) < TOLERANCE


def test_a_prepared_row_keeps_its_loras(small: House) -> None:
    """Throwing one out under a running row would change its picture midway; the bound waits."""
    alone = small.latents(A)
    state = small.pipeline.prepare([small.ask(A)])[0]
    small.pipeline.step([state])
    small.latents(B)
    assert small.counts["entries"] == 2
    run_to_end(small.pipeline, [state])
    assert torch.equal(state.latents, alone)
    del state
    small.latents(B)
    assert small.counts["entries"] == 1


def test_what_they_cost_is_counted(house: House) -> None:
    """For health: the budget of the device is shared with them."""
    house.latents(A)
    expected = sum(down.nbytes + up.nbytes for down, up in house.pairs["a"].values())
    assert house.counts == {"hits": 0, "misses": 1, "entries": 1, "bytes": expected}
    house.latents(BOTH)
    assert house.counts == {"hits": 1, "misses": 2, "entries": 2, "bytes": 2 * expected}


def test_a_switch_that_changes_nothing_does_nothing(house: House) -> None:
    """Every step asks; with one key running, all but the first find it done."""
    house.latents(A)
    layers = [layer for _, layer in adapted(house.parts.transformer)]
    before = [layer.active_adapters for layer in layers]
    house.latents(A)
    assert all(now is then for now, then in zip((x.active_adapters for x in layers), before, strict=True))


def spoiled(house: House) -> None:
    pairs = copy.deepcopy(house.pairs["a"])
    next(reversed(pairs.values()))[1][0, 0] = float("nan")
    loras.written(house.folder / "other.safetensors", pairs)


def of_another_family(house: House) -> None:
    pairs = {"down_blocks.1.attentions.0.proj_in": (torch.ones(1, 4), torch.ones(4, 1))}
    loras.written(house.folder / "other.safetensors", pairs)


@pytest.mark.parametrize(
    ("prepare", "sentence"), [(spoiled, "no numbers"), (of_another_family, "Stable Diffusion")]
)
def test_a_file_that_cannot_be_used_is_the_requests_fault_alone(
    prepare: Any, sentence: str, house: House
) -> None:
    """The sentence names the LoRA by its id and never by its path; nothing of it stays in the model."""
    plain = house.latents()
    prepare(house)
    with pytest.raises(RequestError, match=sentence) as caught:
        house.pipeline.prepare([house.ask((("other", 1.0),))])
    assert (caught.value.code, caught.value.param) == ("invalid_parameter", "loras")
    assert "'other'" in caught.value.message
    assert str(house.folder) not in caught.value.message
    assert not adapted(house.parts.transformer)
    assert torch.equal(house.latents(), plain)
    with pytest.raises(RequestError):
        house.pipeline.prepare([house.ask((("a", 1.0), ("other", 1.0)))])
    assert torch.equal(house.latents(), plain)


def test_a_file_that_comes_later_is_taken(house: House) -> None:
    """Until it is there the answer is that it may be worth another try."""
    wanted = (("other", 1.0),)
    with pytest.raises(CapacityError, match="not here") as caught:
        house.pipeline.prepare([house.ask(wanted)])
    assert (caught.value.code, caught.value.retryable) == ("not_ready", True)
    loras.written(house.folder / "other.safetensors", house.pairs["a"])
    assert torch.equal(house.latents(wanted), house.latents(A))


def test_putting_it_on_half_way_leaves_nothing(house: House) -> None:
    """A layer that takes no LoRA, found when others have theirs already."""
    plain = house.latents()
    name = "transformer_blocks.1.attn.to_q"
    layer = house.parts.transformer.get_submodule(name)
    house.parts.transformer.set_submodule(name, torch.nn.Identity())
    with pytest.raises(ValueError, match="not supported"):
        house.pipeline.prepare([house.ask(A)])
    assert not adapted(house.parts.transformer)
    house.parts.transformer.set_submodule(name, layer)
    assert torch.equal(house.latents(), plain)
    assert apart(house.latents(A), house.merged(*A)) < TOLERANCE


def test_a_forward_that_fails_under_loras_leaves_the_model_as_it_was(house: House) -> None:
    """The row after it asked for none."""
    plain = house.latents()
    states = house.pipeline.prepare([house.ask(A)])

    def fail(module: Any, inputs: Any) -> None:
        raise RuntimeError("planted")

    hook = house.parts.transformer.transformer_blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="planted"):
        house.pipeline.step(states)
    hook.remove()
    assert torch.equal(house.latents(), plain)
    run_to_end(house.pipeline, states)
    assert torch.equal(states[0].latents, house.latents(A))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a", "a.safetensors", "owner/name/a.safetensors", "c", ""]
)
def test_only_listed_ids_are_taken(name: str, house: House) -> None:
    """A request names no file: the operator does, and gives it an id."""
    with pytest.raises(RequestError) as caught:
        house.ask(((name, 1.0),))
    assert (caught.value.code, caught.value.param) == ("invalid_parameter", "loras")


REFUSING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "PRECISION_MODE=8bit": ({"mode": "4bit"}, {}),
    "EIGHT_BIT_BACKEND=bitsandbytes": ({"mode": "8bit", "eight_bit": "fp8-layerwise"}, {}),
    "TORCH_COMPILE=0": ({}, {"compile": True}),
    "OFFLOAD=model": ({}, {"offload": "sequential"}),
}


@pytest.mark.parametrize("remedy", REFUSING)
def test_a_precision_that_takes_none_refuses_at_once(remedy: str) -> None:
    """At the edge, with what to change, and not after a wait in the queue."""
    precision, tuning = REFUSING[remedy]
    row = catalog("pocket-edit", adapters={"a"}, precision=precision, tuning=tuning).default
    with pytest.raises(RequestError, match=remedy):
        ask(row, adapters=A)
    assert ask(row).adapters == ()


@pytest.mark.parametrize(
    "precision",
    [{}, {"mode": "8bit"}, {"mode": "fp16"}, {"mode": "4bit", "components": "text"}],
    ids=str,
)
def test_other_precisions_take_them(precision: dict[str, Any]) -> None:
    """Eight-bit weights stay as they are beside them; a 4-bit text encoder is not the part they change."""
    row = catalog("pocket-edit", adapters={"a", "b"}, max_adapters=1, precision=precision).default
    assert ask(row, adapters=A).adapters == A
    with pytest.raises(RequestError, match="over the limit of 1"):
        ask(row, adapters=BOTH)
