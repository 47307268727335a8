"""``Report``: what one replica says of itself, and ``Reports``: what they say together."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from core.service import Health, LoadedModel
from core.stats import ModelCounts, Stats

K = TypeVar("K")

_STATES = ("ready", "loading", "draining", "failed")  # the best of the fleet is the fleet's


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """name: of the replica's process, no two alike."""

    name: str
    health: Health
    stats: Stats


class Reports:
    """The latest of each replica. What a replica that is gone has counted still counts."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._present: tuple[Report, ...] = ()
        self._all: dict[str, Report] = {}

    def replace(self, reports: Sequence[Report]) -> None:
        """``reports``: of all replicas that run now."""
        self._present = tuple(reports)
        self._all |= {report.name: report for report in reports}

    def health(self, counts: dict[str, int]) -> Health:
        """``counts``: the ingress's own, for what waits before the replicas is known to it alone."""
        told = sorted((r.health for r in self._present), key=lambda health: _STATES.index(health.state))
        if not told:
            nobody = "no worker runs yet; what is sent now waits for one"
            return Health(state="loading", model=self._model, detail=nobody, counts=counts)
        best = told[0]
        return replace(
            best,
            counts=counts,
            models=_each_once(model for health in told for model in health.models),
            caches=_caches(health.caches for health in told),
            gpu_available=any(health.gpu_available for health in told),
        )

    def stats(self) -> Stats:
        told = [report.stats for report in self._all.values()]
        return Stats(
            batch_sizes=_sum(stats.batch_sizes for stats in told),
            batch_stops=_sum(stats.batch_stops for stats in told),
            stage_seconds=_sum_seconds(stats.stage_seconds for stats in told),
            models=ModelCounts(
                loads=sum(stats.models.loads for stats in told),
                failures=sum(stats.models.failures for stats in told),
                evictions=sum(stats.models.evictions for stats in told),
                memory=_sum(report.stats.models.memory for report in self._present),
            ),
        )


def _each_once(models: Iterable[LoadedModel]) -> tuple[LoadedModel, ...]:
    return tuple({model.name: model for model in models}.values())


def _caches(all_caches: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    summed: dict[str, Counter[str]] = {}
    for caches in all_caches:
        for name, figures in caches.items():
            summed.setdefault(name, Counter()).update(figures)
    return {name: dict(figures) for name, figures in summed.items()}


def _sum(mappings: Iterable[Mapping[K, int]]) -> dict[K, int]:
    total: Counter[K] = Counter()
    for mapping in mappings:
        total.update(mapping)
    return dict(total)


def _sum_seconds(mappings: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for mapping in mappings:
        for stage, seconds in mapping.items():
            total[stage] = total.get(stage, 0.0) + seconds
    return total
