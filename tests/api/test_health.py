"""What ``/health`` tells of the models: how far a load is, and what is in memory."""

from core.service import Health, LoadedModel, Loading, ModelStatus
from tests.api.serving import serving

COUNTS = {"queued": 0}


def body(loaded: ModelStatus) -> dict[str, object]:
    health = Health.of("painter", loaded, counts=COUNTS, draining=False, fatal=None)
    with serving() as served:
        served.probe.health = health
        answer: dict[str, object] = served.client.get("/health").json()
        return answer


def test_a_load_is_shown_in_bytes_percent_and_seconds() -> None:
    """A person who waits wants to know for how long."""
    loading = Loading(
        model="painter", stage="transformer", bytes_done=30, bytes_total=40, percent=75.0, seconds_left=9.5
    )
    shown = body(ModelStatus(state="loading", detail="painter is loading", loading=loading))
    assert shown["loading"] == {
        "model": "painter",
        "stage": "transformer",
        "bytes_done": 30,
        "bytes_total": 40,
        "percent": 75.0,
        "seconds_left": 9.5,
    }
    assert shown["status"] == "loading"


def test_models_in_memory_are_listed_with_what_they_take() -> None:
    """The figures by which GPU_MAX_GIB and MAX_MODELS_CACHE are chosen; the older fields stay."""
    shown = body(ModelStatus(state="ready", models=(LoadedModel(name="painter", bytes=7, precision="bf16"),)))
    assert shown["models"] == [{"name": "painter", "bytes": 7, "precision": "bf16"}]
    assert shown["loading"] is None
    older = {"status", "gpu_available", "model", "detail", "lightning_enabled", "jobs", "caches"}
    assert older <= shown.keys()


def test_what_the_queue_says_comes_before_what_the_models_say() -> None:
    """A lost device is no longer ready, whatever is loaded; a model not yet asked for is on its way."""
    ready = ModelStatus(state="ready", detail="painter is loaded")
    lost = Health.of("painter", ready, counts=COUNTS, draining=True, fatal="the device is lost")
    assert (lost.state, lost.detail) == ("failed", "the device is lost")
    assert Health.of("painter", ready, counts=COUNTS, draining=True, fatal=None).state == "draining"
    assert Health.of("painter", ModelStatus(), counts=COUNTS, draining=False, fatal=None).state == "loading"
