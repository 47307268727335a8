"""The benchmark of the HTTP layer measures what it says it does."""

import pytest

from benchmarks.http_overhead import OVERHEAD_TARGET_MS, ROWS, Cost, Row, measure, progress_cost, server


def test_every_row_is_answered_by_both_servers() -> None:
    """A row that is refused would be measured as a fast one."""
    with server() as ours, server("--echo") as echo:
        costs = [measure(row, ours, echo, 3) for row in ROWS]
        for cost in costs:
            assert len(cost.ours) == len(cost.echo) == 3
            assert min(cost.echo) > 0
            assert cost.codec > 0, "no picture was made"
        with pytest.raises(ValueError, match="unknown_field"):
            measure(Row("flat", "/runsync", "small", lambda: b'{"input": {"promt": 1}}'), ours, echo, 1)


def test_every_row_has_a_target() -> None:
    """One without would be measured and never judged."""
    assert {row.size for row in ROWS} == OVERHEAD_TARGET_MS.keys()


def test_a_slow_dialect_misses() -> None:
    """The codec and the echo are taken off, and nothing else."""
    cost = Cost(ROWS[0], ours=[9.0, 9.0], echo=[1.0, 1.0], codec=2.0)
    assert (cost.overhead, cost.missed) == (6.0, True)


def test_events_are_read_while_progress_is_measured() -> None:
    """At least one for each step of each job, or nothing was compared."""
    silent, told, read = progress_cost(1, jobs=4, steps=5)
    assert silent > 0
    assert told > 0
    assert read >= 4 * 5
