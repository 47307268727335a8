"""What is learnt from watching, and what is forgotten."""

from batching.timing import Returns, StepTimes


def learnt(seconds: dict[int, float]) -> StepTimes:
    times = StepTimes()
    for rows, each in seconds.items():
        for _ in range(3):
            times.observe(rows, each)
    return times


def test_nothing_seen_is_nothing_claimed() -> None:
    """A new key must run at once, and as wide as the policy allows."""
    times = StepTimes()
    assert times.estimate(4) == 0.0
    assert times.width(4, 0.02) == 4


def test_an_unseen_size_is_hoped_to_pay() -> None:
    """Otherwise it would never be tried."""
    times = learnt({1: 1.0})
    assert 1.0 < times.estimate(2) < 2.0
    assert times.width(8, 0.02) == 8


def test_batches_stop_growing_where_the_device_is_saturated() -> None:
    """1024² rows: two are as fast for each as four."""
    assert learnt({1: 2.0, 2: 3.77, 3: 5.63, 4: 7.50}).width(4, 0.02) == 2
    assert learnt({1: 1.0, 2: 1.1, 3: 1.26, 4: 1.48}).width(4, 0.02) == 4
    assert learnt({1: 2.0, 2: 3.77, 3: 5.63, 4: 7.50}).width(4, 0.0) == 4


def test_a_slow_first_step_is_soon_outweighed() -> None:
    """Compilation takes a minute, once."""
    times = StepTimes()
    times.observe(4, 60.0)
    times.observe(1, 1.0)
    assert times.width(4, 0.02) == 4
    times.observe(4, 1.5)
    times.observe(4, 1.5)
    assert times.estimate(4) == 1.5


def test_hiccups_of_others_do_not_count() -> None:
    """A busy machine delays every third step."""
    times = StepTimes()
    for n in range(9):
        times.observe(4, 5.0 if n % 3 == 0 else 1.0)
    assert times.estimate(4) == 1.0


def test_a_size_that_once_looked_bad_is_tried_again() -> None:
    """Its samples may have been somebody else's fault."""
    times = StepTimes(memory=10)
    for _ in range(3):
        times.observe(4, 100.0)
        times.observe(1, 1.0)
    assert times.width(4, 0.02) < 4
    for _ in range(20):
        times.observe(1, 1.0)
    assert times.width(4, 0.02) == 4


def loop(returns: Returns, delays: list[float], rounds: int = 40) -> float:
    """As many clients as delays, answered together every 0.1 s; the time of the last answer."""
    now = 0.0
    for _ in range(rounds):
        now += 0.1
        returns.answered(len(delays), now)
        for delay in delays:
            returns.arrived(now + delay)
    return now


def test_callers_in_a_loop_are_waited_for_until_all_are_back() -> None:
    """Twice their usual delay at most."""
    returns = Returns(0.04)
    now = loop(returns, [0.004, 0.006]) + 0.1
    returns.answered(2, now)
    returns.arrived(now + 0.004)
    until = returns.worth_waiting_until(1, saved=0.02, now=now + 0.004)
    assert now + 0.008 < until < now + 0.012
    assert returns.worth_waiting_until(1, saved=0.0, now=now + 0.004) == now + 0.004
    returns.arrived(now + 0.006)
    assert returns.worth_waiting_until(2, saved=0.02, now=now + 0.006) == now + 0.006


def test_callers_who_left_are_given_up() -> None:
    """Nobody waits past the time at which they used to come."""
    returns = Returns(0.04)
    now = loop(returns, [0.004, 0.006]) + 0.1
    returns.answered(2, now)
    assert returns.worth_waiting_until(1, saved=0.02, now=now + 0.02) == now + 0.02


def test_irregular_arrivals_are_not_waited_for() -> None:
    """Delays all over the place are chance, not a loop."""
    returns = Returns(0.04)
    now = loop(returns, [0.0005, 0.0005, 0.0005, 0.02]) + 0.1
    returns.answered(2, now)
    assert returns.worth_waiting_until(1, saved=0.02, now=now) == now
