"""One bad row fails alone, in a bounded number of runs."""

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batching.isolation import isolate
from core.errors import DeviceLost, OutOfDeviceMemory


class Device:
    """Runs rows by number. ``poison`` rows fail their whole group; each row may succeed only once.

    ``hiccups``: the runs, by number, that fail whoever is in them. ``memory``: the most rows it holds.
    """

    def __init__(
        self,
        poison: Sequence[int] = (),
        hiccups: Sequence[int] = (),
        memory: int = 1000,
        hungry: Sequence[int] = (),
    ) -> None:
        self.poison, self.hiccups, self.memory, self.hungry = set(poison), set(hiccups), memory, set(hungry)
        self.runs: list[list[int]] = []
        self.done: list[int] = []
        self.limits: list[int] = []

    def __call__(self, rows: Sequence[int]) -> list[str | Exception]:
        number = len(self.runs)
        self.runs.append(list(rows))
        if len(rows) > self.memory or self.hungry & set(rows):
            raise OutOfDeviceMemory
        if number in self.hiccups or self.poison & set(rows):
            raise ValueError(sorted(self.poison & set(rows)))
        self.done += rows
        return [f"answer {row}" for row in rows]

    def isolate(self, count: int) -> list[str | Exception]:
        return isolate(range(count), self, self.limits.append)


def failed(outcomes: Sequence[str | Exception]) -> list[int]:
    return [row for row, outcome in enumerate(outcomes) if isinstance(outcome, Exception)]


def assert_exactly_once(device: Device, outcomes: Sequence[str | Exception]) -> None:
    """Every row that did not fail ran to success once, and has its own answer."""
    good = [row for row in range(len(outcomes)) if row not in failed(outcomes)]
    assert sorted(device.done) == good
    assert [outcomes[row] for row in good] == [f"answer {row}" for row in good]


@pytest.mark.parametrize("count", range(1, 17))
def test_healthy_rows_run_once_together(count: int) -> None:
    """Isolation costs nothing while nothing fails."""
    device = Device()
    assert_exactly_once(device, device.isolate(count))
    assert device.runs == [list(range(count))]


@pytest.mark.parametrize(("count", "poison"), [(n, p) for n in range(1, 17) for p in range(n)])
def test_one_poison_row_fails_alone_within_log2_runs(count: int, poison: int) -> None:
    """Every position of every batch size."""
    device = Device([poison])
    outcomes = device.isolate(count)
    assert failed(outcomes) == [poison]
    assert_exactly_once(device, outcomes)
    assert len(device.runs) - 1 <= math.ceil(math.log2(count)) + 1


@pytest.mark.parametrize("count", range(1, 9))
def test_every_set_of_poison_rows_fails_and_no_other(count: int) -> None:
    """Exhaustive: no combination may convict a good row or miss a bad one."""
    for size in range(count + 1):
        for poison in itertools.combinations(range(count), size):
            device = Device(poison)
            outcomes = device.isolate(count)
            assert failed(outcomes) == list(poison)
            assert_exactly_once(device, outcomes)


@pytest.mark.parametrize("count", range(1, 17))
def test_a_fault_that_passes_convicts_nobody(count: int) -> None:
    """The whole batch failed once, for no row's fault."""
    device = Device(hiccups=[0])
    outcomes = device.isolate(count)
    assert failed(outcomes) == []
    assert_exactly_once(device, outcomes)


def test_two_failures_on_one_row_are_believed() -> None:
    """Were a lone row retried for ever, a poison row would block the device."""
    device = Device([0])
    assert failed(device.isolate(1)) == [0]
    assert device.runs == [[0], [0]]


@pytest.mark.parametrize(("count", "memory"), [(n, m) for n in range(1, 17) for m in range(1, n + 1)])
def test_out_of_memory_halves_until_it_fits(count: int, memory: int) -> None:
    """All rows answer, and the sizes that did not fit are told."""
    device = Device(memory=memory)
    outcomes = device.isolate(count)
    assert failed(outcomes) == []
    assert_exactly_once(device, outcomes)
    assert all(size > memory for size in device.limits)
    assert bool(device.limits) == (count > memory)


def test_a_row_that_does_not_fit_alone_gets_the_error() -> None:
    """Its neighbours answer."""
    device = Device(hungry=[2])
    outcomes = device.isolate(4)
    assert failed(outcomes) == [2]
    assert isinstance(outcomes[2], OutOfDeviceMemory)
    assert_exactly_once(device, outcomes)


@given(
    count=st.integers(1, 16),
    poison=st.sets(st.integers(0, 15), max_size=4),
    hungry=st.sets(st.integers(0, 15), max_size=2),
    memory=st.integers(1, 16),
)
def test_poison_and_memory_together(count: int, poison: set[int], hungry: set[int], memory: int) -> None:
    """Whatever goes wrong, a row fails if and only if it cannot run alone."""
    device = Device([*poison], memory=memory, hungry=[*hungry])
    outcomes = device.isolate(count)
    assert failed(outcomes) == sorted(row for row in poison | hungry if row < count)
    assert_exactly_once(device, outcomes)


@given(count=st.integers(1, 16), hiccups=st.sets(st.integers(0, 30), max_size=6))
def test_random_hiccups_never_lose_or_repeat_a_row(count: int, hiccups: set[int]) -> None:
    """Several may convict an innocent row, never answer one twice or not at all."""
    device = Device(hiccups=[*hiccups])
    outcomes = device.isolate(count)
    assert len(outcomes) == count
    assert_exactly_once(device, outcomes)


def test_a_lost_device_ends_everything() -> None:
    """There is nothing left to retry on."""
    runs = []

    def run(rows: Sequence[int]) -> list[str | Exception]:
        runs.append(rows)
        raise DeviceLost

    with pytest.raises(DeviceLost):
        isolate(range(4), run, lambda size: None)
    assert len(runs) == 1


def test_a_row_may_bring_its_own_fault() -> None:
    """What is known to be one row's fault needs no search."""
    fault = ValueError("mine")

    def run(rows: Sequence[int]) -> list[str | Exception]:
        return ["good", fault]

    assert isolate(range(2), run, lambda size: None) == ["good", fault]


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_miscounted_answer_is_a_failure(extra: int) -> None:
    """Nobody can tell whose the answers are."""

    def run(rows: Sequence[int]) -> list[str | Exception]:
        wrong = len(rows) == 4
        return ["answer"] * (len(rows) + (extra if wrong else 0))

    assert isolate(range(4), run, lambda size: None) == ["answer"] * 4


def test_kept_errors_hold_no_frames() -> None:
    """A traceback would keep the failed call's tensors in memory while its rows are retried."""
    outcome = Device([1]).isolate(2)[1]
    assert isinstance(outcome, ValueError)
    assert outcome.__traceback__ is None
