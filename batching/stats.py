"""``MuxStats``: what the mux shows of itself, and the identity that nothing is lost by."""

from dataclasses import dataclass, field

from batching.job import JobState


@dataclass(frozen=True, kw_only=True, slots=True)
class MuxStats:
    """A consistent snapshot.

    jobs:          accepted jobs by the state they are in now.
    batch_sizes:   how many steps were run with so many rows.
    batch_stops:   how many steps took no more rows, by the reason; see ``Tick.stop``.
    stage_seconds: device time by stage (acquire, prepare, step, preview, decode).
    retry_after:   seconds after which a refused caller should try again.
    fatal:         why this process must be replaced, or None.
    """

    accepted: int
    jobs: dict[JobState, int]
    batch_sizes: dict[int, int] = field(default_factory=dict)
    batch_stops: dict[str, int] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    retry_after: float = 0.0
    draining: bool = False
    fatal: str | None = None

    @property
    def balanced(self) -> bool:
        """accepted = succeeded + failed + cancelled + expired + queued + running"""
        return self.accepted == sum(self.jobs.values())

    def __str__(self) -> str:
        return f"{self.counts}; rows in a step: {self.batch_sizes}"

    @property
    def counts(self) -> dict[str, int]:
        return {"accepted": self.accepted, **{str(state): count for state, count in self.jobs.items()}}
