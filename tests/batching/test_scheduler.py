"""Who runs with whom, in virtual time."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from batching.scheduler import Rest, Tick
from tests.batching.rig import BIG, STEP, WINDOW, Rig, rows
from tests.fakes import make_request


def test_a_lone_request_starts_at_once() -> None:
    """No window: waiting for company that may never come is pure latency."""
    rig = Rig()
    rig.submit(make_request("a"))
    assert rig.tick() == ["a"]


def test_others_join_between_steps_and_leave_when_their_own_steps_are_done() -> None:
    """A 2-step request is not held by an 8-step one, nor made to wait for it."""
    rig = Rig()
    rig.submit(make_request("long", steps=8))
    rig.tick()
    rig.submit(make_request("short", steps=2))
    assert sorted(rig.tick()) == ["long", "short"]
    rig.tick()
    assert rig.done == {"short": 3.0}
    assert rig.tick() == ["long"]


def test_only_rows_of_one_key_share_a_step() -> None:
    """The key is a matter of correctness."""
    rig = Rig()
    rig.submit(make_request("a"), make_request("b", size=BIG), make_request("c"), make_request("d", cfg=4.0))
    rig.run_out()
    keys = {"a": 0, "b": 1, "c": 0, "d": 2}
    assert all(len({keys[id] for id in tick}) == 1 for tick in rig.ticks)
    assert set(rig.done) == set(keys)


def test_a_batch_is_capped_by_count() -> None:
    """BATCH_SIZE."""
    rig = Rig(replace(STEP, max_batch_size=3))
    rig.submit(*rows(7))
    assert len(rig.tick()) == 3


def test_a_batch_is_capped_by_tokens_and_one_row_always_fits() -> None:
    """Large images fill the device alone."""
    rig = Rig(replace(STEP, max_batch_tokens=100))
    rig.submit(*rows(4, tokens=40))
    assert len(rig.tick()) == 2
    huge = Rig(replace(STEP, max_batch_tokens=100))
    huge.submit(*rows(4, tokens=400))
    assert len(huge.tick()) == 1


def test_batches_grow_no_wider_than_pays() -> None:
    """On a saturated device width makes everyone wait and nobody faster; that is learnt by watching."""

    def widths(seconds: Callable[[int], float]) -> list[int]:
        rig = Rig(seconds=seconds)
        for size in (1, 2, 3, 4) * 6:
            rig.submit(*rows(size, steps=1))
            rig.run_out()
        rig.submit(*rows(12, steps=1))
        rig.ticks.clear()
        rig.run_out()
        return [len(tick) for tick in rig.ticks]

    assert widths(lambda n: float(n)) == [1] * 12
    assert widths(lambda n: max(2.0, float(n))) == [2] * 6
    assert widths(lambda n: 1.0) == [4] * 3


def test_rows_in_memory_are_bounded() -> None:
    """Those that sit out for shorter ones still hold device memory."""
    rig = Rig(replace(STEP, max_batch_size=1, max_prepared=3, stretch=1000.0, overtaking=1000.0))
    rig.submit(make_request("0", steps=90))
    for n in range(1, 30):
        rig.tick()
        rig.submit(make_request(str(n), steps=90 - 2 * n))
        assert rig.scheduler.running <= 3
    rig.run_out()
    assert len(rig.done) == 30


def test_the_window_opens_at_the_first_arrival_and_closes_on_time() -> None:
    """BATCH_TIMEOUT_MS."""
    rig = Rig(WINDOW)
    rig.submit(make_request("a"))
    assert rig.plan() == Rest(0.040)
    rig.now = 0.030
    rig.submit(make_request("b"))
    assert rig.plan() == Rest(0.040)
    rig.now = 0.040
    assert rig.tick() == ["a", "b"]


def test_a_full_batch_leaves_at_once() -> None:
    """The window is for batches that are not full."""
    rig = Rig(WINDOW)
    rig.submit(*rows(4))
    assert rig.tick() == ["r0", "r1", "r2", "r3"]


def test_nothing_joins_a_batch_that_runs() -> None:
    """Rows that start together end together."""
    rig = Rig(WINDOW)
    rig.submit(*rows(4, steps=2))
    rig.tick()
    rig.submit(make_request("late", steps=2))
    assert rig.tick() == ["r0", "r1", "r2", "r3"]
    assert rig.tick() == ["late"]


def test_steps_and_cfg_divide_windows() -> None:
    """The bucket of the first worker: width, height, steps, cfg."""
    rig = Rig(WINDOW)
    rig.submit(make_request("a", steps=4), make_request("b", steps=8), make_request("c", cfg=2.0))
    rig.now = 1.0
    rig.run_out()
    assert all(len(tick) == 1 for tick in rig.ticks)


@pytest.mark.parametrize(
    ("policy", "limit", "waiting", "reason"),
    [
        ({}, None, 2, "drained"),
        ({"max_batch_size": 2}, None, 2, "drained"),
        ({"max_batch_size": 2}, None, 3, "size"),
        ({"max_batch_tokens": 80}, None, 3, "tokens"),
        ({}, 2, 3, "memory"),
        ({"max_prepared": 2, "max_batch_size": 2}, None, 5, "size"),
    ],
)
def test_a_tick_says_why_it_takes_no_more(
    policy: dict[str, Any], limit: int | None, waiting: int, reason: str
) -> None:
    """Whoever wonders why batches are small reads it from a curve."""
    rig = Rig(replace(STEP, **policy))
    if limit is not None:
        rig.submit(*rows(1, tokens=40, prefix="before", steps=1))
        tick = rig.plan()
        assert isinstance(tick, Tick)
        rig.scheduler.limit(tick, limit, rig.now)
        rig.run(tick)
    rig.submit(*rows(waiting, tokens=40))
    tick = rig.plan()
    assert isinstance(tick, Tick)
    assert tick.stop == reason


def test_a_tick_says_that_more_would_not_pay() -> None:
    """On a saturated device."""
    rig = Rig(seconds=lambda rows: float(rows))
    for size in (1, 2, 3, 4) * 6:  # until that is known
        rig.submit(*rows(size, steps=1))
        rig.run_out()
    rig.submit(*rows(12, steps=1))
    tick = rig.plan()
    assert isinstance(tick, Tick)
    assert tick.stop == "gain"
