"""Who runs with whom, in virtual time."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from batching.job import Job, JobState
from batching.scheduler import BatchPolicy, Rest, Scheduler, Tick
from core.errors import CapacityError
from core.request import Image, InferenceRequest
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


# Joining between steps.


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


# Window batching: the same scheduler.


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


# Order.


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


# Models.


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


# Room, deadlines, memory.


def test_a_full_queue_is_refused_with_the_time_it_takes() -> None:
    """Computed from the queue and the pace at which jobs end."""
    rig = Rig(replace(STEP, max_queue=8, max_batch_size=2))
    rig.submit(*rows(8, steps=2))
    rig.run_out()
    rig.submit(*rows(8, steps=2, prefix="again"))
    with pytest.raises(CapacityError) as caught:
        rig.submit(make_request("late"))
    assert caught.value.code == "queue_full"
    assert caught.value.retry_after == pytest.approx(8 * 1.0, rel=0.1)
    rig.tick()
    rig.submit(make_request("late"))


def test_retry_after_is_never_more_than_two_minutes() -> None:
    """Clients give up otherwise."""
    rig = Rig(replace(STEP, max_queue=50, max_batch_size=1), seconds=lambda n: 30.0)
    rig.submit(make_request("slow", steps=2))
    rig.run_out()
    rig.submit(*rows(50))
    with pytest.raises(CapacityError) as caught:
        rig.submit(make_request("late"))
    assert caught.value.retry_after == 120.0


def test_the_queue_is_bounded_by_bytes_too() -> None:
    """256 pictures of 40 megapixels would not fit."""
    picture = Image(pixels=bytes(3 * 100 * 100), width=100, height=100)
    rig = Rig(replace(STEP, max_queue_bytes=70_000))
    rig.submit(*rows(2, images=(picture,)))
    with pytest.raises(CapacityError, match="MiB"):
        rig.submit(make_request("late", images=(picture,)))
    rig.tick()
    rig.submit(make_request("late", images=(picture,)))


def test_one_request_is_accepted_whatever_its_size() -> None:
    """The edges have limits of their own; an idle worker must not refuse what they let through."""
    picture = Image(pixels=bytes(3 * 100 * 100), width=100, height=100)
    Rig(replace(STEP, max_queue_bytes=1)).submit(make_request(images=(picture,)))


def test_a_live_id_is_unique() -> None:
    """Cancel and progress go by it."""
    rig = Rig()
    rig.submit(make_request("a", steps=1))
    with pytest.raises(ValueError, match="'a'"):
        rig.submit(make_request("a"))
    rig.run_out()
    rig.submit(make_request("a"))


def test_jobs_are_due_when_their_deadline_passes() -> None:
    """Queued and running ones alike; others are not."""
    rig = Rig(replace(STEP, max_batch_size=1))
    rig.submit(make_request("running", timeout=5.0, steps=40))
    rig.tick()
    rig.submit(make_request("queued", timeout=7.0, steps=50), make_request("patient", steps=50))
    assert rig.scheduler.due(4.9) == []
    assert [job.id for job in rig.scheduler.due(5.0)] == ["running"]
    rig.scheduler.finish(rig.scheduler.jobs[0], JobState.EXPIRED)
    assert rig.scheduler.due(7.9) == []
    assert [job.id for job in rig.scheduler.due(8.0)] == ["queued"]


def test_a_size_that_ran_out_of_memory_is_avoided_for_a_while() -> None:
    """Then tried again: what filled the memory may have gone."""
    rig = Rig()
    rig.submit(*rows(12, steps=3))
    tick = rig.plan()
    assert isinstance(tick, Tick)
    rig.scheduler.limit(tick, 2, rig.now)
    rig.run(tick)
    assert len(rig.tick()) == 2
    rig.now += STEP.limit_seconds
    assert len(rig.tick()) == 4


def test_another_keys_memory_is_not_limited() -> None:
    """A cap belongs to a shape."""
    rig = Rig()
    rig.submit(*rows(4, steps=1))
    tick = rig.plan()
    assert isinstance(tick, Tick)
    rig.scheduler.limit(tick, 1, rig.now)
    rig.run(tick)
    rig.submit(*rows(4, steps=1, size=BIG, prefix="big"))
    assert len(rig.tick()) == 4


def test_cancelled_jobs_leave_the_queue_and_the_batch() -> None:
    """A queued one never runs; a running one is not in the next step."""
    rig = Rig(replace(STEP, max_batch_size=2))
    jobs = rig.submit(*rows(4, steps=5))
    rig.tick()
    rig.scheduler.finish(jobs[0], JobState.CANCELLED)
    rig.scheduler.finish(jobs[2], JobState.CANCELLED)
    assert sorted(rig.tick()) == ["r1", "r3"]


def test_what_is_learnt_of_many_keys_is_bounded() -> None:
    """A caller chooses the size, and so the key."""
    rig = Rig()
    for side in range(1000):
        rig.submit(make_request(str(side), size=(16, 16 + side), steps=1))
        rig.run_out()
    assert len(rig.scheduler._lanes) <= 256
