"""The benchmark of the pocket checkpoint reads the right clocks and units."""

import time

from benchmarks.pocket_edit import cpu_seconds, peak_memory


def test_memory_is_in_gigabytes() -> None:
    """A process with torch in it holds more than a tenth of one; a wrong unit is off by a thousand."""
    assert 0.1 < peak_memory() < 100


def test_cpu_time_is_work_not_waiting() -> None:
    """Another process on the same core must not count."""
    before, clock = cpu_seconds(), time.process_time()
    sum(range(2_000_000))
    assert abs((cpu_seconds() - before) - (time.process_time() - clock)) < 0.02
    assert cpu_seconds() > before
