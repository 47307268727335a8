"""What only a CUDA device can show; ``pytest -m gpu tests/gpu`` runs it, other runs leave it out.

The pocket checkpoint on the card, in the formats that a card computes in.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from core.errors import OutOfDeviceMemory
from core.request import InferenceRequest
from core.spec import PipelineSpec
from pipelines.int8_linear import Int8Linear
from pipelines.options import EightBit, ModelOptions, Precision, Silent, Tuning
from pipelines.qwen_image import QwenImageEdit, load_edit_plus
from pipelines.registry import catalog
from tests.pipelines.edits import ask, edit, pixels, run_to_end

pytestmark = pytest.mark.gpu
BACKENDS: tuple[EightBit, ...] = ("bitsandbytes", "torchao-int8", "torchao-fp8")
WORDS = ("make this photo black and white", "flip it left to right", "invert the colours", "make it brighter")
PLAIN, COMPILED = Tuning(), Tuning(compile=True)
EIGHT_BIT: list[tuple[EightBit, Tuning]] = [
    ("fp8-layerwise", PLAIN),
    *((backend, tuning) for backend in BACKENDS for tuning in (PLAIN, COMPILED)),
]


@pytest.fixture(scope="module", autouse=True)
def card() -> torch.device:
    assert torch.cuda.is_available(), "these tests were asked for and there is no CUDA device"
    return torch.device("cuda")


@pytest.fixture(scope="module")
def served() -> PipelineSpec:
    return catalog("pocket-edit").default


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> ModelOptions:
    folder: Path = tmp_path_factory.mktemp("cache")
    return ModelOptions(cache_dir=folder, condition_cache_bytes=0)


@pytest.fixture(scope="module")
def requests(served: PipelineSpec) -> list[InferenceRequest]:
    steps = (4, 4, 8, 2)
    return [ask(served, i, prompt=words, steps=steps[i]) for i, words in enumerate(WORDS)]


@pytest.fixture(scope="module")
def whole(served: PipelineSpec, options: ModelOptions) -> QwenImageEdit:
    return loaded(served, options, Precision(mode="fp32"))


def loaded(
    spec: PipelineSpec, options: ModelOptions, precision: Precision, tuning: Tuning = PLAIN
) -> QwenImageEdit:
    return load_edit_plus(spec, replace(options, precision=precision, tuning=tuning), Silent())


def decibels(one: NDArray[np.int16], other: NDArray[np.int16]) -> float:
    error = float(np.mean((one.astype(float) - other) ** 2))
    return 10 * math.log10(255**2 / max(1e-9, error))


def test_int8_stays_finite_beyond_fp16_and_rows_stay_apart(card: torch.device) -> None:
    """A planted activation of 1e5, on the card's own kernels; the other rows do not notice, bit for bit."""
    torch.manual_seed(0)
    linear = nn.Linear(3072, 3072).requires_grad_(False)
    rows = torch.randn(64, 3072)
    small = Int8Linear.of(linear.bfloat16(), card).to(card)
    calm = small(rows.to(card, torch.bfloat16))
    rows[7, 100] = 1e5
    planted = small(rows.to(card, torch.bfloat16))
    assert torch.isfinite(planted).all()
    others = [i for i in range(64) if i != 7]
    assert torch.equal(planted[others], calm[others])
    assert torch.equal(small(rows[3:4].to(card, torch.bfloat16)), planted[3:4])
    exact = linear.float()(rows)[7]
    assert (planted[7].float().cpu() - exact).norm() < 0.05 * exact.norm()


def test_a_row_alone_is_the_row_batched_in_bf16(
    served: PipelineSpec, options: ModelOptions, requests: list[InferenceRequest]
) -> None:
    """Other batches use other kernels, so not to the bit: 40 dB, and other rows are far below."""
    pipeline = loaded(served, options, Precision())
    alone = [pixels(edit(pipeline, request)) for request in requests]
    states = pipeline.prepare(requests)
    run_to_end(pipeline, states)
    batched = [pixels(result) for result in pipeline.decode(states)]
    assert min(decibels(a, b) for a, b in zip(alone, batched, strict=True)) > 40
    assert decibels(alone[0], batched[1]) < 25


@pytest.mark.parametrize(("backend", "tuning"), EIGHT_BIT)
def test_8bit_pictures_are_near_to_the_whole(
    backend: EightBit,
    tuning: Tuning,
    served: PipelineSpec,
    options: ModelOptions,
    requests: list[InferenceRequest],
    whole: QwenImageEdit,
) -> None:
    """With the activations rounded as well where that is what the card is given to do."""
    pipeline = loaded(served, options, Precision(mode="8bit", eight_bit=backend), tuning)
    for request in requests:
        assert decibels(pixels(edit(pipeline, request)), pixels(edit(whole, request))) > 30


def test_4bit_pictures_resemble_the_whole(
    served: PipelineSpec, options: ModelOptions, requests: list[InferenceRequest], whole: QwenImageEdit
) -> None:
    """The coarsest scheme."""
    pipeline = loaded(served, options, Precision(mode="4bit"))
    for request in requests:
        assert decibels(pixels(edit(pipeline, request)), pixels(edit(whole, request))) > 25


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloaded_weights_leave_the_card_and_give_the_same_picture(
    offload: str, served: PipelineSpec, options: ModelOptions, requests: list[InferenceRequest]
) -> None:
    """Bytes on the card are what it is for."""
    still = edit(loaded(served, options, Precision()), requests[0])
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    moved = loaded(served, options, Precision(), Tuning(offload=offload))  # type: ignore[arg-type]
    waiting = torch.cuda.memory_allocated() - before
    weights = sum(weight.numel() * 2 for weight in moved._parts.vae.parameters())
    assert waiting < 2 * weights + 2**20, "no more than the autoencoder"
    assert decibels(pixels(edit(moved, requests[0])), pixels(still)) > 45


@pytest.fixture
def little_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_batch_that_does_not_fit_leaves_every_row_as_it_was(
    served: PipelineSpec, options: ModelOptions, little_memory: None
) -> None:
    """What the mux answers by halving: the same rows run in smaller groups, and give their pictures."""
    pipeline = loaded(served, options, Precision())
    request = ask(served, 0, steps=1, width=512, height=512)
    rows = [pipeline.prepare([replace(request, id=str(i))])[0] for i in range(64)]
    with pytest.raises(OutOfDeviceMemory):
        pipeline.step(rows)
    assert all(row.remaining == 1 for row in rows)
    for row in rows[:2]:
        pipeline.step([row])
    assert [row.remaining for row in rows[:3]] == [0, 0, 1]
