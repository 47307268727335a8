"""Who runs first, in virtual time: between jobs, keys and models."""

from dataclasses import replace

import pytest

from batching.job import JobState
from batching.scheduler import Rest, Tick
from tests.batching.rig import BIG, STEP, Rig, rows
from tests.fakes import make_request


def test_the_least_remaining_work_goes_first_between_keys() -> None:
    """A short edit does not queue behind a long one of another size."""
    rig = Rig()
    rig.submit(make_request("probe", size=BIG, steps=1), make_request("other", steps=1))
    rig.run_out()
    rig.submit(make_request("long", steps=40))
    rig.tick()
    rig.submit(make_request("short", size=BIG, steps=4))
    for _ in range(4):
        rig.tick()
    assert set(rig.done) == {"probe", "other", "short"}


def test_a_short_row_takes_the_slot_of_a_long_one_in_its_key() -> None:
    """The long one sits out between steps and goes on later."""
    rig = Rig(replace(STEP, max_batch_size=1))
    rig.submit(make_request("long", steps=40))
    rig.tick()
    rig.submit(make_request("short", steps=2))
    rig.tick()
    rig.tick()
    assert rig.done == {"short": 3.0}
    rig.run_out()
    assert rig.done["long"] == 42.0


def test_fifo_keeps_the_order_of_arrival() -> None:
    """The option stays."""
    rig = Rig(replace(STEP, order="fifo", max_batch_size=1))
    rig.submit(make_request("long", steps=10), make_request("short", size=BIG, steps=1))
    rig.run_out()
    assert list(rig.done) == ["long", "short"]


def test_a_long_request_is_not_overtaken_for_ever() -> None:
    """A stream of short ones of the same key, arriving as fast as they are served."""
    rig = Rig(replace(STEP, max_batch_size=1))
    rig.submit(make_request("long", steps=20))
    rig.tick()
    for n in range(1000):
        rig.submit(make_request(f"s{n}", steps=2))
        rig.tick()
        rig.tick()
        if "long" in rig.done:
            break
    waited_for_nothing = 20.0
    assert rig.done["long"] < (1 + STEP.overtaking + 1) * waited_for_nothing


@pytest.mark.parametrize(("flood_steps", "lone_steps"), [(4, 4), (4, 8), (8, 4), (1, 1), (4, 40)])
@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize("lone_size", [BIG, (128, 128)])
def test_a_flood_never_holds_a_lone_request_of_another_key_for_more_than_two_batch_times(
    flood_steps: int, lone_steps: int, older: bool, lone_size: tuple[int, int]
) -> None:
    """All the time in which it does not run is counted, whether the flood came before it or after."""
    rig = Rig(seconds=lambda n: 1.0 + 0.1 * n)
    rig.submit(make_request("warm", size=lone_size, steps=3), *rows(8, steps=flood_steps, prefix="warm"))
    rig.run_out()
    if older:
        rig.submit(*rows(200, steps=flood_steps))
        rig.tick()
    started = rig.now
    rig.submit(make_request("lone", size=lone_size, steps=lone_steps))
    if not older:
        rig.submit(*rows(200, steps=flood_steps))
    held = 0.0
    sent = 200
    while "lone" not in rig.done:
        before = rig.now
        if "lone" not in rig.tick():
            held += rig.now - before
        rig.submit(*rows(1, steps=flood_steps, prefix=f"more{sent}-"))
        sent += 1
        assert rig.now - started < 1000
    batch_time = flood_steps * (1.0 + 0.1 * 4)
    assert held <= 2 * batch_time + 1e-9


def test_many_flooded_keys_all_advance() -> None:
    """No key may be left out when every one of them has a queue."""
    rig = Rig()
    for key in range(10):
        rig.submit(*rows(20, size=(16, 16 * (key + 1)), steps=1, prefix=f"{key}-"))
    for _ in range(2 * 10 + 2):
        rig.tick()
    assert {id.split("-")[0] for id in rig.done} == {str(key) for key in range(10)}


def test_rows_of_two_models_are_never_in_memory_together() -> None:
    """Loading one may evict the other."""
    rig = Rig()
    rig.submit(*rows(3, model="one", steps=5), *rows(3, model="two", steps=1, prefix="t"))
    while isinstance(tick := rig.plan(), Tick):
        models = {job.key.model for job in rig.scheduler.jobs if job.state is JobState.RUNNING}
        assert len(models) == 1
        rig.run(tick)
    assert len(rig.done) == 6


def test_the_model_in_memory_goes_on_until_another_has_waited_its_turn() -> None:
    """Neither a switch for every request nor a flood that keeps another model out."""
    rig = Rig()
    rig.submit(*rows(4, model="one"))
    rig.tick()
    rig.submit(make_request("lone", model="two"))
    for n in range(40):
        rig.submit(*rows(2, model="one", prefix=f"more{n}-"))
        rig.tick()
        if "lone" in rig.done:
            break
    first = next(number for number, tick in enumerate(rig.ticks) if "lone" in tick)
    assert 4 <= first <= 16


def test_a_slow_switch_is_made_less_often() -> None:
    """Loading may take a minute; a turn must then be worth it."""

    def first_turn(load_seconds: float) -> int:
        rig = Rig()
        rig.submit(*rows(4, model="one"))
        rig.tick()
        rig.scheduler.switched(load_seconds)
        rig.submit(make_request("lone", model="two"))
        while "lone" not in rig.ticks[-1]:
            rig.submit(*rows(2, model="one", prefix=f"at{rig.now}-"))
            rig.tick()
        return len(rig.ticks)

    assert first_turn(0.0) < 20
    assert first_turn(30.0) > 60


def test_without_admission_only_what_is_in_memory_runs() -> None:
    """A model that is to be loaded waits for the rows of the other to end."""
    rig = Rig()
    rig.submit(make_request("a", steps=2))
    rig.tick()
    rig.submit(make_request("b", steps=1))
    tick = rig.scheduler.plan(rig.now, admit=False)
    assert isinstance(tick, Tick)
    assert rig.run(tick) == ["a"]
    assert rig.scheduler.plan(rig.now, admit=False) == Rest(float("inf"))
