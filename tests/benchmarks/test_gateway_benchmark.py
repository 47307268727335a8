"""The benchmark of the gateway's hop: what it calls a miss, and that a round of it runs."""

from dataclasses import replace

from benchmarks.gateway import Figures, faults, measured

GOOD = Figures(p50=101.0, p99=110.0, rate=900.0, total=1000, memory=90.0)
DIRECT = Figures(p50=100.0, p99=105.0, rate=2000.0, total=1000)


def test_a_miss_is_named() -> None:
    """A benchmark that cannot miss says nothing."""
    ways = {"direct": DIRECT, "gateway": GOOD}
    assert not any(faults(load, ways) for load in ("hop", "rate", "memory"))
    slow = {"direct": DIRECT, "gateway": replace(GOOD, p50=104.0, p99=121.0, rate=600.0, memory=900.0)}
    assert [len(faults(load, slow)) for load in ("hop", "rate", "memory")] == [2, 1, 1]


def test_a_round_runs() -> None:
    """With real processes, each asked by real callers; the proxies are told apart from the server."""
    ways = measured("rate", seconds=0.3)
    assert ways.keys() >= {"direct", "gateway"}
    assert ways["gateway"].memory > 20
    assert ways["gateway"].rate > 0
