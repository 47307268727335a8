"""One-step models in virtual time: under clients that ask again once answered, and under a flood."""

import random
import statistics
from collections.abc import Sequence

import pytest

from batching.job import Job
from batching.scheduler import BatchPolicy, Scheduler
from benchmarks.virtual_device import Arrival, simulate
from core.request import InferenceRequest
from tests.fakes import make_request

POLICY = BatchPolicy(max_batch_size=8, max_wait=0.040)
JOBS = 2000


class Linear:
    """A one-step model of ``base + per_row * n`` seconds."""

    def __init__(self, base: float = 0.020, per_row: float = 0.002) -> None:
        self.base, self.per_row = base, per_row

    def prepare(self, rows: Sequence[InferenceRequest]) -> float:
        return 0.0

    def step(self, rows: Sequence[InferenceRequest]) -> float:
        return self.base + self.per_row * len(rows)

    def decode(self, rows: Sequence[InferenceRequest]) -> float:
        return 0.0


class Loop:
    """``clients`` that each send, wait, think for a moment and send again, until ``JOBS`` were sent."""

    def __init__(self, clients: int, think: tuple[float, float], costs: Linear, policy: BatchPolicy = POLICY):
        self.rng = random.Random(clients)
        self.think = think
        self.sent = clients
        self.latencies: list[float] = []
        self.batches: list[int] = []
        first = [(self.rng.uniform(0, 0.05), make_request(f"{n}", steps=1)) for n in range(clients)]
        self.seconds = simulate(Scheduler(policy), first, costs, self.answered)

    def answered(self, job: Job, now: float) -> Arrival | None:
        self.latencies.append(now - job.arrival)
        self.batches.append(job.batch_size)
        if self.sent >= JOBS:
            return None
        self.sent += 1
        return now + self.rng.uniform(*self.think), make_request(f"{self.sent}", steps=1)

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def late_batches(self) -> list[int]:
        """Batch sizes once the loop has settled and before it runs out."""
        return self.batches[JOBS // 4 : -JOBS // 10]


@pytest.mark.parametrize("think", [(0.001, 0.002), (0.002, 0.008)])
def test_a_lone_client_never_waits_for_company(think: tuple[float, float]) -> None:
    """Its next request cannot come before its answer: any lingering is lost."""
    assert max(Loop(1, think, Linear()).latencies) == pytest.approx(0.022)


@pytest.mark.parametrize("think", [(0.001, 0.002), (0.002, 0.008), (0.004, 0.012)])
def test_four_clients_settle_on_batches_of_four(think: tuple[float, float]) -> None:
    """Running at once would split them into two groups that take turns: 83/s at most."""
    loop = Loop(4, think, Linear())
    assert statistics.fmean(loop.late_batches) > 3.9
    assert loop.rate >= 95


@pytest.mark.parametrize("clients", [16, 64])
@pytest.mark.parametrize("think", [(0.001, 0.002), (0.002, 0.008), (0.004, 0.012)])
def test_many_clients_settle_on_full_batches(clients: int, think: tuple[float, float]) -> None:
    """8 / 36 ms is 222/s."""
    assert Loop(clients, think, Linear()).rate >= 211


@pytest.mark.parametrize("clients", [2, 3, 5, 8, 12])
def test_other_numbers_of_clients_do_no_worse_than_taking_turns(clients: int) -> None:
    """The rule must not be fitted to 1, 4, 16 and 64."""
    turns = Loop(clients, (0.002, 0.005), Linear(), BatchPolicy(max_batch_size=8, max_wait=0.0))
    assert Loop(clients, (0.002, 0.005), Linear()).rate >= 0.99 * turns.rate


def test_lingering_stops_where_batches_save_nothing() -> None:
    """A device that takes rows one by one anyway gains nothing from company."""
    loop = Loop(4, (0.002, 0.005), Linear(base=0.0, per_row=0.020))
    assert loop.rate > 49
    assert statistics.fmean(loop.late_batches) < 1.2


def test_open_traffic_is_hardly_held_back() -> None:
    """Poisson arrivals at a quarter of capacity owe nothing to one another."""

    def mean_latency(policy: BatchPolicy) -> float:
        rng, now, latencies = random.Random(7), 0.0, list[float]()
        arrivals = []
        for n in range(JOBS):
            now += rng.expovariate(50)
            arrivals.append((now, make_request(f"{n}", steps=1)))
        simulate(Scheduler(policy), arrivals, Linear(), lambda job, now: latencies.append(now - job.arrival))
        return statistics.fmean(latencies)

    assert mean_latency(POLICY) < 1.05 * mean_latency(BatchPolicy(max_batch_size=8, max_wait=0.0))


@pytest.mark.parametrize("overload", [1.2, 5.0, 50.0])
def test_goodput_under_overload_is_that_of_a_full_device(overload: float) -> None:
    """What cannot be served is refused and costs the device nothing."""
    rng, now, refused = random.Random(3), 0.0, list[InferenceRequest]()
    capacity = 8 / 0.036
    arrivals = []
    for n in range(4 * JOBS):
        now += rng.expovariate(overload * capacity)
        arrivals.append((now, make_request(f"{n}", steps=1, size=(16, 16 * (1 + n % 2)))))
    policy = BatchPolicy(max_batch_size=8, max_queue=64)
    seconds = simulate(Scheduler(policy), arrivals, Linear(), lambda job, now: None, refused.append)
    assert (len(arrivals) - len(refused)) / seconds >= 0.9 * capacity
    assert refused
