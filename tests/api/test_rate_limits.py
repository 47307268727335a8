"""How much one caller may ask for, in virtual time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.rate_limits import MINUTE, RateLimits
from core.errors import CapacityError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ask(limits: RateLimits, who: str = "a") -> None:
    with limits.turn(who):
        pass


def test_the_wait_that_is_named_is_enough_and_not_too_long() -> None:
    """A client that obeys Retry-After gets in at its next try."""
    clock = Clock()
    limits = RateLimits(per_minute=2, clock=clock)
    ask(limits)
    clock.now += 20
    ask(limits)
    with pytest.raises(CapacityError) as caught:
        ask(limits)
    assert (caught.value.code, caught.value.retry_after) == ("rate_limited", 40)
    clock.now += 39.9
    with pytest.raises(CapacityError):
        ask(limits)
    clock.now += 0.1
    ask(limits)


@given(st.lists(st.floats(0, 30), min_size=1, max_size=60), st.integers(1, 5))
def test_no_minute_holds_more_than_the_limit(gaps: list[float], limit: int) -> None:
    """Any sixty seconds, not those of the clock; and what is refused costs nothing."""
    clock = Clock()
    limits = RateLimits(per_minute=limit, clock=clock)
    entered: list[float] = []
    for gap in gaps:
        clock.now += gap
        recent = [at for at in entered if clock.now - at < MINUTE]
        try:
            ask(limits)
        except CapacityError:
            assert len(recent) == limit
        else:
            assert len(recent) < limit
            entered.append(clock.now)


def test_callers_have_limits_of_their_own() -> None:
    """One's flood must not spend another's."""
    limits = RateLimits(per_minute=1, at_once=1, clock=Clock())
    ask(limits)
    with pytest.raises(CapacityError):
        ask(limits)
    ask(limits, "b")


def test_a_turn_ends_whatever_happens_in_it() -> None:
    """A request that fails must not count as open for ever."""
    limits = RateLimits(at_once=1, clock=Clock())
    with pytest.raises(KeyError), limits.turn("a"):
        raise KeyError
    with limits.turn("a"), pytest.raises(CapacityError):
        ask(limits)
    ask(limits)


def test_callers_who_are_gone_are_forgotten() -> None:
    """Addresses are many; memory is not. Those with something open or recent stay."""
    clock = Clock()
    limits = RateLimits(per_minute=1, at_once=1, clock=clock)
    with limits.turn("open"):
        for number in range(2000):
            ask(limits, str(number))
        clock.now += MINUTE
        ask(limits, "recent")
        for number in range(2000, 4000):
            ask(limits, str(number))
        with pytest.raises(CapacityError):
            ask(limits, "open")
        with pytest.raises(CapacityError):
            ask(limits, "recent")
        assert len(limits._callers) <= 2010
        clock.now += MINUTE
        ask(limits, "one more")
        assert len(limits._callers) == 2
