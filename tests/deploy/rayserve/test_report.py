"""What replicas say of themselves, as one."""

from core.service import Health, LoadedModel
from core.stats import ModelCounts, Stats
from deploy.rayserve.report import Report, Reports

COUNTS = {"accepted": 3}


def report(name: str, state: str = "ready", *models: str, batches: dict[int, int] | None = None) -> Report:
    loaded = tuple(LoadedModel(name=model, bytes=1, precision="fp32") for model in models)
    caches = {"m.prompts": {"hits": 2, "entries": 1}}
    health = Health(state=state, model="m", detail=f"{name} is {state}", models=loaded, caches=caches)
    counted = ModelCounts(loads=1, memory={"used": 5})
    return Report(
        name=name,
        health=health,
        stats=Stats(batch_sizes=batches or {4: 2}, stage_seconds={"step": 1.5}, models=counted),
    )


def test_nobody_is_there_yet() -> None:
    """Work that comes now waits for the first replica; that is loading, not failure."""
    health = Reports("m").health(COUNTS)
    assert (health.state, health.model, health.counts) == ("loading", "m", COUNTS)


def test_one_that_is_ready_is_enough() -> None:
    """A probe that failed for one replica's sake would take all others from their callers."""
    reports = Reports("m")
    reports.replace([report("a", "failed"), report("b", "ready", "m"), report("c", "loading")])
    health = reports.health(COUNTS)
    assert (health.state, health.detail, health.counts) == ("ready", "b is ready", COUNTS)
    reports.replace([report("a", "failed"), report("c", "loading")])
    assert reports.health(COUNTS).state == "loading"
    reports.replace([report("a", "failed")])
    assert reports.health(COUNTS).state == "failed"


def test_models_and_caches_are_those_of_all() -> None:
    """A model is listed once, however many hold it."""
    reports = Reports("m")
    reports.replace([report("a", "ready", "m", "n"), report("b", "ready", "m", "o")])
    health = reports.health(COUNTS)
    assert health.loaded == ("m", "n", "o")
    assert health.caches == {"m.prompts": {"hits": 4, "entries": 2}}


def test_what_a_lost_replica_counted_still_counts() -> None:
    """A counter that falls looks to Prometheus like a restart, and its curve leaps."""
    reports = Reports("m")
    reports.replace([report("a", batches={1: 5, 4: 2}), report("b", batches={4: 3})])
    reports.replace([report("b", batches={4: 4})])
    stats = reports.stats()
    assert stats.batch_sizes == {1: 5, 4: 6}
    assert stats.stage_seconds == {"step": 3.0}
    assert stats.models.loads == 2
    assert stats.models.memory == {"used": 5}, "memory is of those that are there"
