"""The benchmarks measure what they say they do."""

import statistics

import pytest

from batching.mux import BatchPolicy
from benchmarks import mux_overhead, scheduler_sim
from benchmarks.scheduler_sim import CONTENDERS, Gpu, Latencies, make_request, run, trace


def test_the_overhead_run_answers_everyone() -> None:
    """A small one; speed is for the benchmark itself to judge."""
    outcome = mux_overhead.run(jobs=400, threads=8, keys=4)
    assert len(outcome.latencies) == 400
    assert (outcome.lost, outcome.misrouted) == (0, 0)


@pytest.mark.parametrize(
    ("side", "rows", "published"), [(512, 2, 1.82), (512, 4, 2.77), (512, 8, 3.14), (1024, 2, 1.02)]
)
def test_the_device_batches_as_published(side: int, rows: int, published: float) -> None:
    """Throughput relative to one row: SGLang, Qwen-Image, H200."""
    gpu, request = Gpu(), make_request("", side, 4)
    assert rows * gpu.step([request]) / gpu.step([request] * rows) == pytest.approx(published, rel=0.05)


@pytest.mark.parametrize("kind", scheduler_sim.KINDS)
def test_traffic_has_the_rate_it_is_given(kind: str) -> None:
    """The load means nothing otherwise; and a seed is a trace."""
    rates = [1000 / trace(kind, 2.0, 1000, seed)[-1][0] for seed in range(30)]
    assert statistics.fmean(rates) == pytest.approx(2.0, rel=0.05)
    assert trace(kind, 2.0, 50, 1) == trace(kind, 2.0, 50, 1)


def test_capacity_is_reached_by_an_endless_backlog_and_by_nobody_exceeded() -> None:
    """100 % must be the same, honest number for all contenders."""
    capacity = Gpu().capacity(BatchPolicy().max_batch_size)
    backlog = [(0.0, request) for _, request in trace("poisson", 1.0, 1200, 0)]
    rates = {name: len(backlog) / max(run(policy, backlog)) for name, policy in CONTENDERS.items()}
    assert 0.95 * capacity < rates["window FIFO"] < 1.05 * capacity
    assert 0.95 * capacity < rates["step joining"] < 1.05 * capacity
    assert rates["serial"] < 0.9 * capacity


def test_every_contender_serves_the_whole_trace() -> None:
    """A scheduler that drops its slow jobs would look fast."""
    arrivals = trace("bursty", 0.8, 150, 3)
    assert all(len(run(policy, arrivals)) == 150 for policy in CONTENDERS.values())


def test_a_missed_target_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """``make bench`` must show it."""
    slow = {
        ("poisson", 0.8, name): Latencies([2.0 if name == "step joining" else 1.0] * 100)
        for name in CONTENDERS
    }
    assert scheduler_sim.print_table(slow) is False
    assert "step joining" in capsys.readouterr().out
