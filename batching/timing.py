"""What the scheduler learns by watching: step times by batch size, and how soon callers return."""

import math
from collections import deque

_SAMPLES = 9
_ENOUGH = 3


class StepTimes:
    """Seconds of one step by the number of rows that shared it: the median of the last few samples.

    The first steps of a shape are slow (compilation, autotuning) and hiccups come one at a time, so a
    size is not judged before it has been seen ``_ENOUGH`` times. What has not been seen for ``memory``
    steps is forgotten, so that a size that once looked bad is tried again.
    """

    def __init__(self, memory: int = 256) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._medians: dict[int, float] = {}
        self._seen_at: dict[int, int] = {}
        self._estimates: dict[int, float] = {}  # answers since the last sample
        self._widths: dict[int, int] = {}
        self._step = 0
        self._memory = memory
        self.per_row = 0.0  # seconds a row costs in the most efficient batch seen; 0 when none was

    def observe(self, rows: int, seconds: float) -> None:
        self._step += 1
        self._seen_at[rows] = self._step
        samples = self._samples.setdefault(rows, deque(maxlen=_SAMPLES))
        samples.append(seconds)
        self._medians[rows] = sorted(samples)[(len(samples) - 1) // 2]
        if self._step % self._memory == 0:
            for size in [size for size, at in self._seen_at.items() if at <= self._step - self._memory]:
                del self._samples[size], self._medians[size], self._seen_at[size]
        self._estimates.clear()
        self._widths.clear()
        self.per_row = min([median / size for size, median in self._medians.items()])

    def estimate(self, rows: int) -> float:
        """0 when nothing was ever observed.

        A size not seen is guessed from the nearest one seen as half-way, in logarithms, between a
        batch that costs what one row costs and one that costs what its rows cost one by one: hopeful
        enough to be tried, and then it is known.
        """
        if (known := self._estimates.get(rows)) is None:
            known = self._estimates[rows] = self._guess(rows)
        return known

    def _guess(self, rows: int) -> float:
        median = self._medians.get(rows)
        if median is not None and len(self._samples[rows]) >= _ENOUGH:
            return median
        others = [size for size in self._medians if size != rows]
        if not others:
            return median or 0.0
        nearest = min(others, key=lambda size: abs(size - rows))
        guess = self._medians[nearest] * math.sqrt(rows / nearest)
        return guess if median is None else min(guess, median)

    def width(self, most: int, min_gain: float) -> int:
        """The narrowest batch of at most ``most`` rows within ``min_gain`` of the best throughput."""
        if most <= 1 or not self._medians or min_gain <= 0:
            return most
        if (known := self._widths.get(most)) is None:
            throughput = [rows / max(self.estimate(rows), 1e-9) for rows in range(1, most + 1)]
            enough = max(throughput) * (1 - min_gain)
            known = next(rows for rows, rate in enumerate(throughput, 1) if rate >= enough)
            self._widths[most] = known
        return known

    def saved(self, rows: int) -> float:
        """Device seconds that a step saves when one more row joins ``rows`` instead of running alone."""
        return self.estimate(rows) + self.estimate(1) - self.estimate(rows + 1)


class Returns:
    """Whether callers just answered are about to ask again, as clients in a loop do.

    For every answer it notes how soon the next request came. Clients in a loop come back after about
    the same time; independent arrivals do so after any, and nobody should wait for those.

    ``longest``: seconds after which a return is neither waited for nor remembered.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._answered_at = -math.inf
        self._expected = 0
        self._delay = longest
        self._spread = longest  # mean distance of a return from the mean delay

    def answered(self, count: int, now: float) -> None:
        self._answered_at = now
        self._expected = count

    def arrived(self, now: float) -> None:
        if self._expected:
            self._expected -= 1
            sample = min(now - self._answered_at, self._longest)
            self._spread += 0.1 * (abs(sample - self._delay) - self._spread)
            self._delay += 0.2 * (sample - self._delay)

    def worth_waiting_until(self, rows: int, saved: float, now: float) -> float:
        """Until when ``rows`` waiting rows should wait for one more; ``now`` when they should not.

        Waiting pays while the rows together lose less than the device time that one more row in their
        batch would save, and while a return is still likely.
        """
        until = self._answered_at + 2 * self._delay
        regular = self._spread < 0.6 * self._delay  # of exponential delays it is 0.74
        expected_in = max(self._answered_at + self._delay - now, 0.0)
        if self._expected and now < until and regular and rows * expected_in < saved:
            return until
        return now
