"""Room, deadlines and memory, in virtual time."""

from dataclasses import replace

import pytest

from batching.job import JobState
from batching.scheduler import Tick
from core.errors import CapacityError
from core.request import Image
from tests.batching.rig import BIG, STEP, WINDOW, Rig, rows
from tests.fakes import make_request


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
    """256 pictures of 40 megapixels would not fit; nor would those of rows that run, so they count too."""
    picture = Image(pixels=bytes(3 * 100 * 100), width=100, height=100)
    rig = Rig(replace(STEP, max_queue_bytes=70_000))
    jobs = rig.submit(*rows(2, images=(picture,)))
    for _ in range(2):
        with pytest.raises(CapacityError, match="MiB"):
            rig.submit(make_request("late", images=(picture,)))
        rig.tick()
    rig.scheduler.finish(jobs[0], JobState.CANCELLED)
    rig.submit(make_request("late", images=(picture,)))


def test_window_batching_heeds_what_memory_held() -> None:
    """Otherwise every step of a batch that is too large would run out of memory once more."""
    rig = Rig(replace(WINDOW, max_batch_size=8))
    rig.submit(*rows(8, steps=3))
    tick = rig.plan()
    assert isinstance(tick, Tick)
    assert len(tick.rows) == 8
    rig.scheduler.limit(tick, 4, rig.now)
    rig.run(tick)
    rig.run_out()
    assert {len(ids) for ids in rig.ticks[1:]} == {4}
    assert len(rig.done) == 8


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
