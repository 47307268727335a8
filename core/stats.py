"""``Stats``: what a process has counted since it started, for whoever draws curves of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


class BatchingCounts(Protocol):
    """See ``Stats``."""

    @property
    def batch_sizes(self) -> Mapping[int, int]: ...

    @property
    def batch_stops(self) -> Mapping[str, int]: ...

    @property
    def stage_seconds(self) -> Mapping[str, float]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCounts:
    """memory: bytes by kind; empty where the device does not tell."""

    loads: int = 0
    failures: int = 0
    evictions: int = 0
    memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """batch_sizes: how many steps were run with so many rows.

    batch_stops: how many batches took no more rows, by the reason.
    stage_seconds: device time by stage.
    """

    batch_sizes: Mapping[int, int] = field(default_factory=dict)
    batch_stops: Mapping[str, int] = field(default_factory=dict)
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    models: ModelCounts = field(default_factory=ModelCounts)

    @classmethod
    def of(cls, batching: Callable[[], BatchingCounts], models: Callable[[], ModelCounts]) -> "Stats":
        """What the two tell now."""
        counts = batching()
        return cls(
            batch_sizes=counts.batch_sizes,
            batch_stops=counts.batch_stops,
            stage_seconds=counts.stage_seconds,
            models=models(),
        )
