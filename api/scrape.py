"""``Snapshot``: what the mux and the models count themselves, read when somebody scrapes."""

import math
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from core.service import Health, HealthProbe
from core.stats import Stats

_WAITING = ("queued", "running")
_ROW_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 32, math.inf)
_EVENTS = ("hits", "misses")


class Snapshot(Collector):
    def __init__(self, health: HealthProbe, stats: Callable[[], Stats]) -> None:
        self._health = health
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        health, stats = self._health(), self._stats()
        yield GaugeMetricFamily("batchmux_ready", "1 while work is done, else 0", value=float(health.ready))
        yield from _jobs(health.counts)
        yield from _batches(stats)
        yield from _caches(health)
        yield from _models(stats)

    def describe(self) -> list[Metric]:
        """Nothing is asked before the first scrape."""
        return []


def _jobs(counts: dict[str, int]) -> Iterator[Metric]:
    """accepted = queued + running + those that ended; ``batchmux_jobs_unaccounted`` is the difference."""
    accepted = counts.get("accepted", 0)
    states = {state: count for state, count in counts.items() if state != "accepted"}
    yield CounterMetricFamily("batchmux_jobs_accepted", "Requests let into the queue", value=accepted)
    ended = CounterMetricFamily("batchmux_jobs_ended", "Requests answered, by outcome", labels=["state"])
    waiting = GaugeMetricFamily("batchmux_jobs", "Requests in the queue and on the device", labels=["state"])
    for state, count in states.items():
        (waiting if state in _WAITING else ended).add_metric([state], count)
    yield ended
    yield waiting
    lost = accepted - sum(states.values())
    yield GaugeMetricFamily("batchmux_jobs_unaccounted", "Requests in no state; never but 0", value=lost)


def _batches(stats: Stats) -> Iterator[Metric]:
    rows = HistogramMetricFamily("batchmux_step_rows", "Rows that shared a denoising step")
    sizes = stats.batch_sizes.items()
    buckets = [
        (
            "+Inf" if bound == math.inf else str(float(bound)),
            float(sum(count for size, count in sizes if size <= bound)),
        )
        for bound in _ROW_BUCKETS
    ]
    rows.add_metric([], buckets, sum_value=float(sum(size * count for size, count in sizes)))
    yield rows
    stops = CounterMetricFamily(
        "batchmux_batch_stops", "Steps by the reason why they took no more rows", labels=["reason"]
    )
    for reason, count in stats.batch_stops.items():
        stops.add_metric([reason], count)
    yield stops
    stages = CounterMetricFamily("batchmux_stage_seconds", "Device time", labels=["stage"])
    for stage, seconds in stats.stage_seconds.items():
        stages.add_metric([stage], seconds)
    yield stages


def _caches(health: Health) -> Iterator[Metric]:
    events = CounterMetricFamily("batchmux_cache_events", "Look-ups", labels=["cache", "event"])
    held = GaugeMetricFamily("batchmux_cache_held", "What a cache holds", labels=["cache", "unit"])
    for cache, counts in health.caches.items():
        for name, count in counts.items():
            (events if name in _EVENTS else held).add_metric([cache, name], count)
    yield events
    yield held


def _models(stats: Stats) -> Iterator[Metric]:
    models = stats.models
    yield CounterMetricFamily("batchmux_model_loads", "Models brought into memory", value=models.loads)
    yield CounterMetricFamily("batchmux_model_load_failures", "Loads that failed", value=models.failures)
    yield CounterMetricFamily("batchmux_model_evictions", "Models that made room", value=models.evictions)
    memory = GaugeMetricFamily("batchmux_device_memory_bytes", "Device memory", labels=["kind"])
    for kind, size in models.memory.items():
        memory.add_metric([kind], size)
    yield memory
