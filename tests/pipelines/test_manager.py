"""What stays loaded, what leaves, and what a failed load costs."""

import threading
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

from core.catalog import Catalog
from core.errors import CapacityError, DeviceLost, RequestError
from core.spec import PipelineSpec
from pipelines.manager import ModelManager
from pipelines.options import ModelOptions
from pipelines.registry import SPECS
from tests.pipelines import fakes

ROW = PipelineSpec(name="one", factory="tests.pipelines.fakes:load", source="builtin:one", needs_gpu=False)
TWO = replace(ROW, name="two", source="builtin:two")
THREE = replace(ROW, name="three", source="builtin:three")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def manager(*specs: PipelineSpec, max_models: int = 1, clock: Clock | None = None) -> ModelManager:
    return ModelManager(
        Catalog(specs, specs[0].name),
        ModelOptions(max_models=max_models, model_dir=Path("given")),
        clock=clock or Clock(),
        has_gpu=lambda: False,
        device_bytes=lambda: 10**12,
        find=fakes.find,
    )


def test_a_loaded_model_is_not_loaded_again() -> None:
    """Loading takes minutes."""
    models = manager(ROW)
    assert models.acquire("one") is models.acquire("one")


def test_the_least_recently_used_model_leaves_first() -> None:
    """The one in use a moment ago is likely to be used again."""
    models = manager(ROW, TWO, THREE, max_models=2)
    one, two = models.acquire("one"), models.acquire("two")
    assert models.acquire("one") is one
    models.acquire("three")
    assert models.acquire("one") is one
    assert models.acquire("two") is not two
    assert (models.counts().loads, models.counts().evictions) == (4, 2)


def test_an_evicted_model_is_gone_before_the_next_is_loaded() -> None:
    """Two models do not fit; neither the manager nor its status may hold on to the old one."""
    models = manager(ROW, TWO)
    gone = weakref.ref(models.acquire("one"))
    status = models.status()
    models.acquire("two")
    assert gone() is None
    assert status.caches == {"one.prompts": {"hits": 0}}


def test_an_unknown_model_is_the_callers_fault() -> None:
    """And does not disturb what is loaded."""
    models = manager(ROW)
    one = models.acquire("one")
    with pytest.raises(RequestError):
        models.acquire("nothing")
    assert models.acquire("one") is one


def test_a_failed_load_is_answered_from_memory_until_its_back_off_is_over(tmp_path: Path) -> None:
    """A queue full of requests must not try a broken checkpoint once each."""
    weights = tmp_path / "weights"
    row = replace(ROW, factory="tests.pipelines.fakes:load_when_file_exists", source=str(weights))
    clock = Clock()
    models = manager(row, clock=clock)
    with pytest.raises(CapacityError) as first:
        models.acquire("one")
    weights.touch()
    clock.now += 2
    with pytest.raises(CapacityError) as second:
        models.acquire("one")
    assert (first.value.retry_after, second.value.retry_after) == (5, 3)
    assert first.value is not second.value
    clock.now += 3
    models.acquire("one")
    assert models.status().state == "ready"


def test_back_off_doubles_up_to_two_minutes(tmp_path: Path) -> None:
    """A fault that lasts is asked about less and less, and still mends itself."""
    row = replace(ROW, factory="tests.pipelines.fakes:load_when_file_exists", source=str(tmp_path / "none"))
    clock = Clock()
    models = manager(row, clock=clock)
    waits = []
    for _ in range(7):
        with pytest.raises(CapacityError) as caught:
            models.acquire("one")
        assert caught.value.retry_after is not None
        waits.append(caught.value.retry_after)
        clock.now += caught.value.retry_after
    assert waits == [5, 10, 20, 40, 80, 120, 120]
    assert (models.counts().failures, models.counts().loads) == (7, 0)


def test_the_answer_to_a_failed_load_tells_no_path(tmp_path: Path) -> None:
    """It reaches callers and the health page; the log has the rest."""
    row = replace(ROW, factory="tests.pipelines.fakes:load_when_file_exists", source=str(tmp_path / "none"))
    models = manager(row)
    with pytest.raises(CapacityError) as caught:
        models.acquire("one")
    assert caught.value.code == "not_ready"
    assert str(tmp_path) not in caught.value.message
    assert models.status().detail == caught.value.message
    assert models.status().state == "failed"


def test_a_model_too_large_for_the_device_is_no_reason_to_split_a_batch() -> None:
    """The mux halves batches on OutOfDeviceMemory; fewer requests do not make a model smaller."""
    models = manager(replace(ROW, factory="tests.pipelines.fakes:load_too_large"))
    with pytest.raises(CapacityError, match="does not fit") as caught:
        models.acquire("one")
    assert caught.value.code == "not_ready"


def test_a_lost_device_is_passed_on() -> None:
    """The process has to be replaced; a back-off would keep it."""
    models = manager(replace(ROW, factory="tests.pipelines.fakes:load_on_lost_device"))
    with pytest.raises(DeviceLost):
        models.acquire("one")


def test_a_real_model_without_a_gpu_says_what_to_do() -> None:
    """Never a silent fallback: the sentence names the model that runs here."""
    models = ModelManager(
        Catalog(SPECS, "qwen-image-edit-2509"), ModelOptions(local_only=True), has_gpu=lambda: False
    )
    with pytest.raises(CapacityError, match="DEFAULT_MODEL=pocket-edit") as caught:
        models.acquire("qwen-image-edit-2509")
    assert (caught.value.code, caught.value.retryable) == ("not_ready", False)
    status = models.status()
    assert (status.state, status.gpu_available) == ("failed", False)


def test_a_load_that_cannot_succeed_evicts_nothing() -> None:
    """Asking for a GPU model on a CPU must not cost the next caller a reload."""
    models = manager(ROW, replace(TWO, needs_gpu=True))
    one = models.acquire("one")
    with pytest.raises(CapacityError):
        models.acquire("two")
    assert models.acquire("one") is one
    assert models.status().state == "ready"


def test_loading_can_be_watched_from_another_thread() -> None:
    """Health says which component is being read while the device thread reads it."""
    gate = fakes.GATES["builtin:gated"] = fakes.Gate()
    models = manager(
        replace(ROW, factory="tests.pipelines.fakes:load_through_gate", source="builtin:gated", vram_gb=8)
    )
    assert models.status().state == "idle"
    loader = threading.Thread(target=models.acquire, args=("one",))
    loader.start()
    assert gate.reached.wait(10)
    assert models.status().state == "loading"
    assert "transformer (2 of 3), 25 % (2.0 of 8.0 GB)" in models.status().detail
    loading = models.status().loading
    assert loading is not None
    assert (loading.stage, loading.bytes_done, loading.percent) == ("transformer", 2 * 10**9, 25)
    gate.opened.set()
    loader.join(10)
    assert (models.status().state, models.status().loading) == ("ready", None)


def test_model_dir_is_the_default_models_alone() -> None:
    """One folder holds one checkpoint. So is a revision, and the time that a warm-up takes."""
    chosen = ModelOptions(model_dir=Path("given"), revision="v1", warm_up=((64, 64),), max_models=3)
    assert chosen.for_others() == ModelOptions(max_models=3)
    models = manager(ROW, TWO)
    assert models.acquire("one").options.model_dir == Path("given")  # type: ignore[attr-defined]
    assert models.acquire("two").options.model_dir is None  # type: ignore[attr-defined]


def test_status_counts_are_of_the_moment() -> None:
    """A snapshot taken earlier does not change under its reader."""
    models = manager(ROW)
    counts = models.acquire("one").caches["prompts"]
    before = models.status()
    counts["hits"] += 1
    assert before.caches["one.prompts"]["hits"] == 0
    assert models.status().caches["one.prompts"]["hits"] == 1


def test_a_failure_that_may_mend_itself_lets_work_in_again(tmp_path: Path) -> None:
    """A hub that was down for a minute at start must not end the service: nobody else would try again."""
    weights = tmp_path / "weights"
    row = replace(ROW, factory="tests.pipelines.fakes:load_when_file_exists", source=str(weights))
    clock = Clock()
    models = manager(row, clock=clock)
    with pytest.raises(CapacityError):
        models.acquire("one")
    clock.now += 2
    assert (models.status().state, models.status().retry_after) == ("failed", 3)
    clock.now += 3
    assert models.status().state == "idle"
    weights.touch()
    models.acquire("one")
    assert models.status().state == "ready"


def test_a_fault_that_cannot_mend_itself_stands() -> None:
    """Without a device, waiting helps nobody: the sentence is the answer."""
    clock = Clock()
    models = manager(replace(ROW, needs_gpu=True), clock=clock)
    with pytest.raises(CapacityError):
        models.acquire("one")
    clock.now += 3600
    assert (models.status().state, models.status().retry_after) == ("failed", None)


@pytest.mark.parametrize("first", [[], ["one"]], ids=["nothing loaded", "the default thrown out"])
def test_another_models_failure_is_not_the_services(first: list[str]) -> None:
    """Whoever asks for the default model is served, though the other one's load threw it out."""
    broken = replace(TWO, factory="tests.pipelines.fakes:load_half")
    models = manager(ROW, broken)
    for name in first:
        models.acquire(name)
    models.evict()
    with pytest.raises(CapacityError):
        models.acquire("two")
    assert models.status().state == "ready"
    assert "two could not be loaded" in models.status().detail


def test_the_defaults_failure_stands_whatever_happens_to_others() -> None:
    """Neither another model's load nor its leaving mends it."""
    models = manager(
        replace(ROW, needs_gpu=True), TWO, replace(THREE, factory="tests.pipelines.fakes:load_half")
    )
    with pytest.raises(CapacityError) as default:
        models.acquire("one")
    models.acquire("two")
    assert (models.status().state, models.status().detail) == ("failed", default.value.message)
    models.evict("two")
    assert (models.status().state, models.status().detail) == ("failed", default.value.message)
    with pytest.raises(CapacityError):
        models.acquire("three")
    assert (models.status().state, models.status().detail) == ("failed", default.value.message)


def test_the_status_remembers_the_defaults_form_when_it_left() -> None:
    """The default still runs few steps: it is only not in memory now."""
    models = manager(replace(ROW, factory="tests.pipelines.fakes:load_lightning"), TWO)
    assert not models.status().lightning_enabled
    models.acquire("one")
    assert models.status().lightning_enabled
    models.acquire("two")
    assert models.status().lightning_enabled
    models.evict()
    assert models.status().lightning_enabled


def test_a_failed_load_keeps_nothing_of_what_it_had_read() -> None:
    """Otherwise the next try would find the device full, and fail for that."""
    models = manager(replace(ROW, factory="tests.pipelines.fakes:load_half"))
    with pytest.raises(CapacityError) as kept:
        models.acquire("one")
    assert fakes.READ[-1]() is None
    assert kept.value.code == "not_ready"


def test_the_status_says_how_the_weights_are_held() -> None:
    """Which scheme was picked, and why, without reading logs."""
    models = manager(ROW)
    models.acquire("one")
    assert fakes.FakePipeline.precision in models.status().detail


@pytest.mark.parametrize(
    ("name", "counts", "left"),
    [
        (None, (2, 0), ()),
        ("builtin:ONE", (1, 1), ("two",)),
        ("three", (0, 2), ("one", "two")),
        ("never-heard-of", (0, 2), ("one", "two")),
    ],
    ids=["all", "by-another-name", "not-loaded", "unknown"],
)
def test_a_model_is_thrown_out_when_it_is_told(
    name: str | None, counts: tuple[int, int], left: tuple[str, ...]
) -> None:
    """And really gone; the server stays ready, because the next request loads it again."""
    models = manager(ROW, TWO, THREE, max_models=2)
    one = weakref.ref(models.acquire("one"))
    models.acquire("two")
    assert models.evict(name) == counts
    assert (one() is None) == ("one" not in left)
    status = models.status()
    assert (status.state, status.loaded) == ("ready", left)
    models.acquire("one")
    assert "one" in models.status().loaded


def test_facts_of_the_gpu_are_told_while_a_model_is_on_it() -> None:
    """They are asked for at every look, and not before torch has met the device."""
    facts: dict[str, str | float] = {"name": "H100", "compute_capability": "9.0", "allocated_mb": 1.5}
    models = ModelManager(
        Catalog([ROW], "one"),
        ModelOptions(),
        has_gpu=lambda: True,
        gpu_facts=lambda: dict(facts),
        device_bytes=lambda: 2**40,
        find=fakes.find,
    )
    assert models.status().device == {}
    models.acquire("one")
    assert models.status().device == facts
    facts["allocated_mb"] = 3.0
    assert models.status().device["allocated_mb"] == 3.0
