"""The benchmark of durable jobs measures what it says it does."""

import asyncio
from pathlib import Path

from benchmarks.job_store import LOADS, Load, restart_seconds, submissions


def test_every_submission_is_timed_and_every_job_done(tmp_path: Path) -> None:
    """A small one; speed is for the benchmark itself to judge."""
    outcome = asyncio.run(submissions(tmp_path, Load("small", 200, 100, 1000), 0.2))
    assert len(outcome.submit) == 40
    assert outcome.unfinished == 0
    assert outcome.commits > 0
    assert min(outcome.submit) > 0


def test_the_target_is_judged_at_its_rate() -> None:
    """At most 25 ms at 100 a second, said of small and large results."""
    assert [load.rate for load in LOADS if load.judged] == [100, 100]


def test_a_restart_finds_what_was_left_behind(tmp_path: Path) -> None:
    """It is no measure of an empty store."""
    assert asyncio.run(restart_seconds(tmp_path)) > 0
    assert (tmp_path / "jobs.sqlite3").stat().st_size > 5000 * 2000
