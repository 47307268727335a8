"""A scheduler with a device and a time that a test moves."""

from collections.abc import Callable

from batching.job import Job, JobState
from batching.scheduler import BatchPolicy, Rest, Scheduler, Tick
from core.request import InferenceRequest
from tests.fakes import make_request

STEP = BatchPolicy()
WINDOW = BatchPolicy(join="batch", order="fifo")
BIG = (64, 64)


class Rig:
    """A scheduler, the time, and a device on which a step of ``n`` rows takes ``seconds(n)``."""

    def __init__(self, policy: BatchPolicy = STEP, seconds: Callable[[int], float] = lambda n: 1.0) -> None:
        self.scheduler = Scheduler(policy)
        self.seconds = seconds
        self.now = 0.0
        self.done: dict[str, float] = {}
        self.ticks: list[list[str]] = []

    def submit(self, *requests: InferenceRequest) -> list[Job]:
        return [self.scheduler.submit(request, self.now) for request in requests]

    def plan(self) -> Tick | Rest:
        return self.scheduler.plan(self.now)

    def run(self, tick: Tick) -> list[str]:
        """Carry out a tick; the ids of its rows."""
        seconds = self.seconds(len(tick.rows))
        self.now += seconds
        self.scheduler.stepped(tick, tick.rows, seconds, self.now)
        for job in tick.rows:
            if job.remaining == 0 and job.live:
                self.scheduler.finish(job, JobState.SUCCEEDED)
                self.done[job.id] = self.now
        self.scheduler.ticked(tick, self.now)
        self.ticks.append([job.id for job in tick.rows])
        return self.ticks[-1]

    def tick(self) -> list[str]:
        """The device's next tick. Fails when it rests."""
        tick = self.plan()
        assert isinstance(tick, Tick)
        return self.run(tick)

    def run_out(self) -> None:
        while isinstance(tick := self.plan(), Tick):
            self.run(tick)


def rows(count: int, **wishes: object) -> list[InferenceRequest]:
    prefix = wishes.pop("prefix", "r")
    return [make_request(f"{prefix}{n}", **wishes) for n in range(count)]  # type: ignore[arg-type]
