"""Which models stay in memory: counts and bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import CapacityError
from core.spec import PipelineSpec
from pipelines.options import ModelOptions, Precision, Tuning, Weights
from pipelines.residency import GIB, Budget, Residency, expected_bytes, held
from tests.pipelines.fakes import FakePipeline

ROW = PipelineSpec(name="row", factory="", source="")
QWEN = {"transformer": 20_430_000_000, "text_encoder": 8_290_000_000, "vae": 127_000_000}


def model(nbytes: int) -> FakePipeline:
    pipeline = FakePipeline(ROW, ModelOptions())
    pipeline.weights = Weights(nbytes, "bf16")
    return pipeline


def residency(most: int, budget: int, **models: int) -> Residency:
    loaded = Residency(most)
    loaded.budget = Budget(budget, True)
    for name, nbytes in models.items():
        loaded.add(name, model(nbytes))
    return loaded


def test_no_more_leave_than_must() -> None:
    """Each one that leaves costs somebody a load of minutes."""
    loaded = residency(5, 100, a=30, b=30, c=30)
    assert loaded.leaving_for("new", 10) == []
    assert loaded.leaving_for("new", 40) == ["a"]
    assert loaded.leaving_for("new", 41) == ["a", "b"]
    assert loaded.leaving_for("new", 100) == ["a", "b", "c"]


def test_the_count_is_kept_too() -> None:
    """MAX_MODELS_CACHE=1 is one model, however much memory there is."""
    assert residency(1, 100, a=1).leaving_for("new", 1) == ["a"]
    assert residency(2, 100, a=1).leaving_for("new", 1) == []


def test_use_puts_a_model_last_in_line() -> None:
    """The one in use a moment ago is likely to be used again."""
    loaded = residency(2, 100, a=1, b=1)
    loaded["a"]
    assert loaded.leaving_for("new", 1) == ["b"]


def test_what_does_not_fit_alone_is_refused_with_figures() -> None:
    """The sentence is all that the operator has to go by."""
    loaded = residency(2, 24 * GIB, a=1)
    with pytest.raises(
        CapacityError, match=r"new needs about 57\.7 GiB and GPU_MAX_GIB allows 24\.0 GiB"
    ) as no:
        loaded.leaving_for("new", round(57.7 * GIB))
    assert (no.value.code, no.value.retryable) == ("not_ready", False)
    assert "PRECISION_MODE" in no.value.message
    assert "a" in loaded


def test_a_limit_of_the_device_itself_is_called_so() -> None:
    """Raising GPU_MAX_GIB would not help."""
    loaded = Residency(1)
    loaded.budget = Budget(24 * GIB, False)
    with pytest.raises(CapacityError, match=r"this device has 24\.0 GiB.*use a larger device"):
        loaded.leaving_for("new", 25 * GIB)


def test_caches_are_part_of_what_a_model_holds() -> None:
    """They are on the device like the weights."""
    pipeline = model(100)
    pipeline.caches = {"prompts": {"hits": 3, "bytes": 7}, "adapters": {"bytes": 20}}
    assert held(pipeline) == 127


@given(
    sizes=st.lists(st.integers(0, 50), max_size=6),
    newcomer=st.integers(0, 100),
    most=st.integers(1, 4),
)
def test_what_stays_always_fits(sizes: list[int], newcomer: int, most: int) -> None:
    """Count and bytes hold after every admission, the newest stay longest, and nothing leaves in vain."""
    loaded = residency(most, 100, **{str(i): size for i, size in enumerate(sizes)})
    names = [str(i) for i in range(len(sizes))]
    leaving = loaded.leaving_for("new", newcomer)
    assert leaving == names[: len(leaving)]

    def fits(gone: int) -> bool:
        return len(sizes) - gone < most and sum(sizes[gone:]) + newcomer <= 100

    assert fits(len(leaving))
    assert not leaving or not fits(len(leaving) - 1)


@pytest.mark.parametrize(
    ("precision", "tuning", "gpu", "gb"),
    [
        (Precision(), Tuning(), True, 57.7),
        (Precision(mode="fp32"), Tuning(), True, 115.4),
        (Precision(), Tuning(), False, 115.4),
        (Precision(mode="8bit"), Tuning(), True, 31.8),
        (Precision(mode="8bit", components="transformer"), Tuning(), True, 39.3),
        (Precision(mode="8bit", components="text"), Tuning(), True, 50.2),
        (Precision(mode="8bit", cpu_offload=True), Tuning(), True, 22.7),
        (Precision(mode="4bit"), Tuning(), True, 18.9),
        (Precision(mode="8bit", cpu_offload=True), Tuning(), False, 32.1),
        (Precision(), Tuning(offload="model"), True, 41.1),
        (Precision(mode="8bit", cpu_offload=True), Tuning(offload="model"), True, 22.7),
        (Precision(components="text", cpu_offload=True), Tuning(offload="sequential"), True, 0.25),
        (Precision(), Tuning(offload="sequential"), True, 0.25),
        (Precision(), Tuning(offload="sequential"), False, 115.4),
    ],
)
def test_expected_bytes_follow_the_precision(
    precision: Precision, tuning: Tuning, gpu: bool, gb: float
) -> None:
    """Of the full-size family, whose published sizes are 40.9 and 16.6 GB in bf16, 20.4 and 8.5 in 8 bits."""
    assert expected_bytes(QWEN, precision, tuning, gpu=gpu) / 1e9 == pytest.approx(gb, abs=0.1)


def test_what_stays_on_the_card_beside_offloaded_models_is_counted() -> None:
    """The autoencoder never leaves it."""
    without = {name: weights for name, weights in QWEN.items() if name != "vae"}
    for offload in ("none", "model", "sequential"):
        tuning = Tuning(offload=offload)
        whole, rest = (expected_bytes(parts, Precision(), tuning, gpu=True) for parts in (QWEN, without))
        assert whole - rest == 2 * QWEN["vae"]


def test_a_text_encoder_on_the_host_takes_nothing_of_the_card() -> None:
    """However large it is beside the denoiser."""
    parts = {"text_encoder": 9, "text_encoder_2": 9, "unet": 1, "vae": 1}
    hosted = Precision(cpu_offload=True)
    assert expected_bytes(parts, hosted, Tuning(), gpu=True) == 4
    assert expected_bytes(parts, hosted, Tuning(offload="model"), gpu=True) == 4
