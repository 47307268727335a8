"""What the scheduler learns by watching: step times by batch size, and how soon callers return."""

import math


class StepTimes:
    """Seconds of one step by the number of rows that shared it.

    A sample below what is known counts more than one above it: the first steps of a shape are slow
    (compilation, autotuning) and hiccups come one at a time. What has not been seen for ``memory``
    steps is forgotten, so that a size that once looked bad is tried again.
    """

    def __init__(self, memory: int = 256) -> None:
        self._seconds: dict[int, tuple[float, int]] = {}  # rows -> (seconds, step at which it was seen)
        self._step = 0
        self._memory = memory
        self._widths: dict[int, int] = {}  # answers of ``width`` since the last sample
        self.per_row = 0.0  # seconds a row costs in the most efficient batch seen; 0 when none was

    def observe(self, rows: int, seconds: float) -> None:
        self._step += 1
        if known := self._seconds.get(rows):
            seconds = known[0] + (seconds - known[0]) * (0.5 if seconds < known[0] else 0.1)
        self._seconds[rows] = seconds, self._step
        if self._step % self._memory == 0:
            oldest = self._step - self._memory
            self._seconds = {size: seen for size, seen in self._seconds.items() if seen[1] > oldest}
        self._widths.clear()
        self.per_row = min(known / size for size, (known, _) in self._seconds.items())

    def estimate(self, rows: int) -> float:
        """0 when nothing was ever observed.

        A size not seen is guessed from the nearest one seen as half-way, in logarithms, between a
        batch that costs what one row costs and one that costs what its rows cost one by one: hopeful
        enough to be tried, and then it is known.
        """
        if seen := self._seconds.get(rows):
            return seen[0]
        if not self._seconds:
            return 0.0
        nearest = min(self._seconds, key=lambda size: abs(size - rows))
        return self._seconds[nearest][0] * math.sqrt(rows / nearest)

    def width(self, most: int, min_gain: float) -> int:
        """The narrowest batch of at most ``most`` rows within ``min_gain`` of the best throughput."""
        if most <= 1 or not self._seconds or min_gain <= 0:
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
