"""``Balancer``: which server takes the next request, and which ones are left alone for a while.

Pure: every method is told the time, in seconds of any clock that does not go back, so that the same policy
runs in virtual time. It refuses to know sockets, statuses and bodies.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum


class Outcome(Enum):
    """How one request, or one probe, ended at its server."""

    GOOD = "good"
    BROKEN = "broken"  # nobody there
    ERROR = "error"  # there, and it failed: an answer that says so, one cut off, silence, no HTTP
    NEUTRAL = "neutral"  # the caller left, or the server refused for want of room: says nothing of its state


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """max_outstanding: unanswered requests at one server; further ones wait at the gateway.

    eject_after: failures in a row that take a server out. eject_seconds: for how long the first time; it
        doubles up to longest_eject_seconds while the trials that follow fail.
    cold_cost: how many more requests a server that holds the model may have waiting before one that would
        have to load it is preferred. remember_seconds: for how long a use counts as holding.
    retry_share, retry_reserve: the retry budget: each request earns a share of a further try, and no more
        than the reserve is saved up. So a failing fleet is never asked much more than its callers ask.
    """

    max_outstanding: int = 10
    eject_after: int = 5
    eject_seconds: float = 1.0
    longest_eject_seconds: float = 30.0
    cold_cost: float = 4.0
    remember_seconds: float = 120.0
    retry_share: float = 0.2
    retry_reserve: float = 20.0


@dataclass(slots=True, eq=False)
class Standing:
    """What is known of one server. ``reported`` is its own count of work that did not come from here."""

    name: str
    outstanding: int = 0
    answered: int = 0  # of them: the server is done, and the caller is still reading
    work: float = 0.0
    reported: float = 0.0
    failures: int = 0  # in a row
    errors: int = 0  # of them, ERROR: which a probe's good answer does not outweigh
    trips: int = 0  # ejections since a request last went well
    ejected_until: float | None = None
    trial: bool = False  # the one request of a half-open server is on its way
    draining: bool = False
    resting_until: float = 0.0
    loaded: frozenset[str] = frozenset()
    used: dict[str, float] = field(default_factory=dict)  # model -> when last
    turn: int = 0  # when it was last chosen, to go round among equals

    def usable(self, now: float) -> bool:
        """Not drained, and not ejected; or ejected for long enough that one request may try it."""
        if self.draining:
            return False
        return self.ejected_until is None or (now >= self.ejected_until and not self.trial)

    def holds(self, model: str, now: float, remember_seconds: float) -> bool:
        if model in self.loaded:
            return True
        last = self.used.get(model)
        return last is not None and now - last < remember_seconds

    @property
    def there(self) -> bool:
        """It answers, well or badly."""
        return self.ejected_until is None or 0 < self.errors == self.failures

    def has_room(self, most: int) -> bool:
        return self.outstanding - self.answered < most

    @property
    def load(self) -> float:
        return self.work + self.reported


@dataclass(frozen=True, slots=True)
class Pick:
    """``name``: the server chosen; None when there is none. ``full``: some could take it but for room."""

    name: str | None
    full: bool = False


class Balancer:
    """Least outstanding work among usable servers, with a discount for those that hold the model."""

    def __init__(self, policy: Policy, names: Iterable[str] = ()) -> None:
        self.policy = policy
        self._standings = {name: Standing(name) for name in names}
        self._turns = 0
        self._retries = policy.retry_reserve

    @property
    def standings(self) -> tuple[Standing, ...]:
        return tuple(self._standings.values())

    def standing(self, name: str) -> Standing | None:
        return self._standings.get(name)

    def add(self, name: str) -> None:
        """A server of that name that is there already is no longer drained."""
        self._standings.setdefault(name, Standing(name)).draining = False

    def drain(self, name: str) -> None:
        """No new work; what is under way there ends as it would."""
        if name in self._standings:
            self._standings[name].draining = True

    def remove(self, name: str) -> None:
        self._standings.pop(name, None)

    def pick(
        self,
        now: float,
        *,
        model: str | None = None,
        among: Collection[str] | None = None,
        tried: Collection[str] = (),
    ) -> Pick:
        """The server for a request of ``model`` (None: whichever is each server's own).

        among: the only ones that can take it; None is all. tried: those it was at already.
        """
        usable = [
            standing
            for standing in self._usable(now)
            if standing.name not in tried and (among is None or standing.name in among)
        ]
        free = [standing for standing in usable if standing.has_room(self.policy.max_outstanding)]
        if not free:
            return Pick(None, full=bool(usable))
        best = min(free, key=lambda standing: self._cost(standing, model, now))
        return Pick(best.name)

    def has_room(self, now: float) -> bool:
        """Whether any server could take any request."""
        most = self.policy.max_outstanding
        return any(each.has_room(most) for each in self._usable(now))

    def _usable(self, now: float) -> list[Standing]:
        """Where nobody else is left, those that fail what they are asked: it may be one caller's requests."""
        kept = [each for each in self._standings.values() if not each.draining]
        return [each for each in kept if each.usable(now)] or [each for each in kept if each.there]

    def _cost(self, standing: Standing, model: str | None, now: float) -> tuple[bool, bool, float, int]:
        cost = standing.load
        if model is not None and not standing.holds(model, now, self.policy.remember_seconds):
            cost += self.policy.cold_cost
        # A server that is due for its trial takes it at once, or it would never be heard of again.
        due = standing.ejected_until is not None
        return standing.resting_until > now, not due, cost, standing.turn

    def begin(self, name: str, now: float, *, model: str | None = None, work: float = 1.0) -> None:
        """A request goes there; ``work`` in any unit that is the same for all."""
        standing = self._standings[name]
        self._turns += 1
        standing.turn = self._turns
        standing.outstanding += 1
        standing.work += work
        if standing.ejected_until is not None:
            standing.trial = True
        if model is not None:
            standing.used[model] = now
            if len(standing.used) > 64:
                del standing.used[min(standing.used, key=standing.used.__getitem__)]

    def answered(self, name: str) -> None:
        """The server is done with one, whose caller still reads: a slow reader takes nobody's place."""
        standing = self._standings.get(name)
        if standing is not None:
            standing.answered += 1

    def end(
        self, name: str, now: float, outcome: Outcome, *, work: float = 1.0, answered: bool = False
    ) -> None:
        """Its answer is over. A server that was removed meanwhile is not missed."""
        standing = self._standings.get(name)
        if standing is None:
            return
        standing.outstanding = max(0, standing.outstanding - 1)
        standing.answered = max(0, standing.answered - answered)
        standing.work = max(0.0, standing.work - work) if standing.outstanding else 0.0
        if outcome is Outcome.GOOD:
            standing.failures = standing.errors = standing.trips = 0
            standing.ejected_until, standing.trial = None, False
        elif outcome is Outcome.NEUTRAL:
            # With others under way it may have been one from before the ejection, and the trial still runs.
            standing.trial = standing.trial and standing.outstanding > 0
        else:
            self._failed(standing, now, outcome)

    def rest(self, name: str, now: float, seconds: float) -> None:
        """It has no room, or is leaving: others go first for so long, but it is not out. 0 ends that."""
        standing = self._standings.get(name)
        if standing is not None:
            standing.resting_until = now + seconds

    def probed(
        self,
        name: str,
        now: float,
        outcome: Outcome,
        *,
        loaded: Iterable[str] = (),
        waiting: float = 0.0,
    ) -> None:
        """What a look at its health gave. ``waiting``: all work there by its own count, ours included.

        An answer ends the ejection of a server that was not there, once its time is over. That of one which
        failed is ended by a request alone: a server that fails every request may well say that it is healthy.
        """
        standing = self._standings.get(name)
        if standing is None:
            return
        if outcome is not Outcome.GOOD:
            self._failed(standing, now, outcome)
            return
        standing.loaded = frozenset(loaded)
        standing.reported = max(0.0, waiting - standing.outstanding)
        if standing.errors == 0:
            standing.failures = 0
            if standing.ejected_until is not None and now >= standing.ejected_until:
                standing.ejected_until, standing.trial = None, False

    def _failed(self, standing: Standing, now: float, outcome: Outcome) -> None:
        standing.failures += 1
        standing.errors += outcome is Outcome.ERROR
        ejected = standing.ejected_until is not None
        over = standing.ejected_until is not None and now >= standing.ejected_until
        # Requests that were under way when it was ejected must not prolong that.
        if (ejected and over) or (not ejected and standing.failures >= self.policy.eject_after):
            seconds = self.policy.eject_seconds * 2.0 ** min(standing.trips, 30)
            standing.ejected_until = now + min(seconds, self.policy.longest_eject_seconds)
            standing.trips += 1
            standing.trial = False

    def earn(self) -> None:
        """A new request of a caller's."""
        self._retries = min(self.policy.retry_reserve, self._retries + self.policy.retry_share)

    def may_retry(self) -> bool:
        """Whether the budget allows one further try, which it then pays for."""
        if self._retries < 1.0:
            return False
        self._retries -= 1.0
        return True
