"""Traffic for a fleet: a day's rise and fall, or bursts that come and go.

Bursts are a Markov-modulated Poisson process of two states. The state is the whole fleet's: everybody asks
more at once, so that bursts do not average out as the fleet grows.
"""

import math
import random
from collections.abc import Callable, Iterator
from typing import Final

from core.request import InferenceRequest, Task

KINDS: Final = ("diurnal", "bursty")
MODEL: Final = "m"
SIDE: Final = 256
STEPS: Final = (4, 8, 20)  # equally likely

_SWING = 0.5  # of the mean rate, up at noon and down at night
_CALM_SECONDS, _BURST_SECONDS = 8.0, 2.0  # mean stay in each state
_BURST = 3.0  # times the calm rate
_CYCLES = 6  # of both states, about a minute

Arrival = tuple[float, InferenceRequest]


def traffic(kind: str, rate: float, seconds: float, seed: int) -> Iterator[Arrival]:
    """Requests at ``rate`` a second on average for ``seconds``, which are one day where it is diurnal."""
    rng = random.Random(f"{kind} {seed}")
    if kind == "diurnal":
        shape, peak = _day(seconds), 1 + _SWING
    else:
        shape, peak = _bursts(rng, seconds)
    number, now = 0, rng.expovariate(rate * peak)
    while now < seconds:
        if rng.random() * peak < shape(now):
            yield now, make_request(f"{number}", rng.choice(STEPS))
            number += 1
        now += rng.expovariate(rate * peak)


def make_request(id: str, steps: int) -> InferenceRequest:
    size = (SIDE, SIDE)
    return InferenceRequest(
        id=id,
        task=Task.EDIT,
        model=MODEL,
        prompt="",
        size=size,
        canvas=size,
        steps=steps,
        cfg=1.0,
        seed=0,
        tokens=SIDE * SIDE // 256,
    )


def _day(seconds: float) -> Callable[[float], float]:
    return lambda now: 1 - _SWING * math.cos(2 * math.pi * now / seconds)


def _bursts(rng: random.Random, seconds: float) -> tuple[Callable[[float], float], float]:
    """The rate at a time, and its peak, as multiples of the mean; ask for times in their order.

    Each minute or so has stays of the same lengths, the quantiles of their distribution, in another order:
    a short run of a large fleet must meet the bursts that a long run of a small one meets.
    """
    blocks = max(1, round(seconds / (_CYCLES * (_CALM_SECONDS + _BURST_SECONDS))))
    quantiles = [-math.log(1 - (n + 0.5) / _CYCLES) for n in range(_CYCLES)]
    unit = seconds / (blocks * sum(quantiles) * (_CALM_SECONDS + _BURST_SECONDS))
    ends, now = list[float](), 0.0
    for _ in range(blocks):
        calms, bursts = rng.sample(quantiles, _CYCLES), rng.sample(quantiles, _CYCLES)
        for calm, burst in zip(calms, bursts, strict=True):
            ends += [now + unit * calm * _CALM_SECONDS]
            now = ends[-1] + unit * burst * _BURST_SECONDS
            ends += [now]
    low = (_CALM_SECONDS + _BURST_SECONDS) / (_CALM_SECONDS + _BURST * _BURST_SECONDS)
    place = 0

    def shape(at: float) -> float:
        nonlocal place
        while place + 1 < len(ends) and ends[place] <= at:
            place += 1
        return low * (_BURST if place % 2 else 1.0)

    return shape, low * _BURST
