"""``RateLimits``: how much one caller may ask for. Each has limits of his own, so no flood spends another's.

Knows no HTTP; time is an argument.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from core.errors import CapacityError

MINUTE = 60.0
_SWEEP = 1024  # callers remembered before those who are gone are forgotten


@dataclass(slots=True)
class _Caller:
    times: deque[float] = field(default_factory=deque)  # of what was let in during the last minute
    open: int = 0


class RateLimits:
    """per_minute: requests let in within any 60 seconds. at_once: unanswered ones. None is no limit."""

    def __init__(
        self,
        *,
        per_minute: int | None = None,
        at_once: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_minute = per_minute
        self._at_once = at_once
        self._clock = clock
        self._callers: dict[str, _Caller] = {}

    @contextmanager
    def turn(self, who: str) -> Iterator[None]:
        """One request, from its arrival until its answer is out.

        Raises ``CapacityError`` ``rate_limited``, which counts as no request.
        """
        if self._per_minute is None and self._at_once is None:
            yield
            return
        caller = self._enter(who, self._clock())
        try:
            yield
        finally:
            caller.open -= 1

    def _enter(self, who: str, now: float) -> _Caller:
        if len(self._callers) >= _SWEEP and who not in self._callers:
            self._forget(now)
        caller = self._callers.setdefault(who, _Caller())
        while caller.times and now - caller.times[0] >= MINUTE:
            caller.times.popleft()
        if self._at_once is not None and caller.open >= self._at_once:
            limit = f"{caller.open} of your requests are unanswered, the limit is {self._at_once}"
            raise CapacityError("rate_limited", f"{limit}; wait for one of them", retry_after=1)
        if self._per_minute is not None:
            if len(caller.times) >= self._per_minute:
                after = MINUTE - (now - caller.times[0])
                limit = f"the limit is {self._per_minute} requests a minute"
                raise CapacityError("rate_limited", f"{limit}; wait {after:.0f} s", retry_after=after)
            caller.times.append(now)
        caller.open += 1
        return caller

    def _forget(self, now: float) -> None:
        self._callers = {
            who: caller
            for who, caller in self._callers.items()
            if caller.open or (caller.times and now - caller.times[-1] < MINUTE)
        }
