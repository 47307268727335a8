"""``Fleet``: the servers, which of them is next, and what probes find out about them."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from core.errors import CapacityError, UpstreamError
from gateway.asking import Unanswered
from gateway.balancer import Balancer, Outcome, Policy
from gateway.upstream import Health, Upstream

log = logging.getLogger("batchmux.gateway")

_REMEMBERED: Final = 20_000  # jobs whose server is known without asking
_RESTING_SECONDS: Final = 3.0  # of a server that said it is leaving; probes come more often


@dataclass(frozen=True, slots=True)
class _Wish:
    model: str | None
    among: frozenset[str]
    tried: frozenset[str]


class Fleet:
    """Use from one event loop.

    max_waiting: requests that may wait for room at once. wait_seconds: for how long.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        policy: Policy,
        *,
        max_waiting: int = 256,
        wait_seconds: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.upstreams = {upstream.name: upstream for upstream in upstreams}
        self.balancer = Balancer(policy, self.upstreams)
        self.clock = clock
        self.seen: dict[str, Health | str] = {}  # by name: the last probe's finding, or why there is none
        self.waited_seconds = 0.0
        self._max_waiting = max_waiting
        self._wait_seconds = wait_seconds
        self._probed = float("-inf")
        self._probing: asyncio.Future[None] | None = None
        self._waiting: dict[asyncio.Future[Upstream], _Wish] = {}
        self.holders_known: OrderedDict[str, str] = OrderedDict()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def under_way(self) -> int:
        return sum(standing.outstanding for standing in self.balancer.standings)

    async def take(
        self,
        path: str,
        *,
        model: str | None,
        tried: Collection[str] = (),
        only: str | None = None,
        wait: bool = True,
    ) -> Upstream:
        """The server for a request, which counts there from now on: ``release`` it.

        Waits, first come first served, while all have their fill; unless told not to.
        Raises ``UpstreamError`` ``no_upstream`` and ``CapacityError`` ``queue_full``.
        """
        among = {name for name, upstream in self.upstreams.items() if upstream.takes(path)}
        if only is not None:
            among &= {only}
        wish = _Wish(model, frozenset(among), frozenset(tried))
        # Room that is there now is of no use to those who wait, or they would have been given it.
        found = self._find(wish)
        if found is None and not wait:
            raise CapacityError("queue_full", "all servers have their fill; try again later", retry_after=5)
        return found or await self._wait(wish)

    def _find(self, wish: "_Wish") -> Upstream | None:
        """None while all have their fill."""
        now = self.clock()
        pick = self.balancer.pick(now, model=wish.model, among=wish.among, tried=wish.tried)
        if pick.name is None:
            if pick.full:
                return None
            raise UpstreamError("no_upstream", "no server can take this now; try again in a moment")
        self.balancer.begin(pick.name, now, model=wish.model)
        return self.upstreams[pick.name]

    async def _wait(self, wish: "_Wish") -> Upstream:
        if len(self._waiting) >= self._max_waiting:
            raise CapacityError(
                "queue_full", f"{self._max_waiting} requests wait already; try again later", retry_after=5
            )
        turn: asyncio.Future[Upstream] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = wish
        began = self.clock()
        try:
            async with asyncio.timeout(self._wait_seconds):
                return await asyncio.shield(turn)
        except TimeoutError:
            self._give_back(turn)
            raise CapacityError(
                "queue_full",
                f"no server had room within {self._wait_seconds:g} s; try again later",
                retry_after=5,
            ) from None
        except asyncio.CancelledError:
            self._give_back(turn)
            raise
        finally:
            self.waited_seconds += self.clock() - began
            self._waiting.pop(turn, None)

    def _give_back(self, turn: "asyncio.Future[Upstream]") -> None:
        """A turn that was given in the moment in which its caller stopped waiting."""
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            self.release(turn.result(), Outcome.NEUTRAL)
        turn.cancel()

    def answered(self, upstream: Upstream) -> None:
        """The server is done, its answer is on its way; ``release`` follows."""
        self.balancer.answered(upstream.name)
        self._hand_out()

    def release(self, upstream: Upstream, outcome: Outcome, *, answered: bool = False) -> None:
        self.balancer.end(upstream.name, self.clock(), outcome, answered=answered)
        if outcome in (Outcome.BROKEN, Outcome.ERROR):
            log.info("server=%s outcome=%s", upstream.name, outcome.value)
        self._hand_out()

    def _hand_out(self) -> None:
        """Give room to those who wait, in the order in which they came."""
        for turn, wish in list(self._waiting.items()):
            if turn.done():
                continue
            try:
                found = self._find(wish)
            except UpstreamError as error:
                turn.set_exception(error)
                continue
            if found is not None:
                turn.set_result(found)
            elif not self.balancer.has_room(self.clock()):
                return

    def remember(self, job: str, upstream: Upstream) -> None:
        self.holders_known[job] = upstream.name
        self.holders_known.move_to_end(job)
        if len(self.holders_known) > _REMEMBERED:
            self.holders_known.popitem(last=False)

    def holders(self, job: str, path: str) -> list[Upstream]:
        """All that may hold a job, the likeliest first; drained ones too, for their jobs are still there."""
        known = self.holders_known.get(job)
        able = [upstream for upstream in self.upstreams.values() if upstream.takes(path)]
        return sorted(able, key=lambda upstream: upstream.name != known)

    def reachable(self, upstream: Upstream) -> bool:
        standing = self.balancer.standing(upstream.name)
        return standing is not None and standing.there

    async def look(self) -> None:
        """One round of probes; those who wait may wait for a server that is due for its trial."""
        await self.probe(0)
        self._hand_out()

    async def probe(self, age: float) -> None:
        """Look at every server, unless the last look is younger than ``age`` seconds; one look at a time."""
        if self._probing is None:
            if self.clock() - self._probed < age:
                return
            self._probing = asyncio.ensure_future(self._probe_all())
        await asyncio.shield(self._probing)

    async def _probe_all(self) -> None:
        try:
            await asyncio.gather(*(self._probe(upstream) for upstream in list(self.upstreams.values())))
        finally:
            self._probed = self.clock()
            self._probing = None

    async def _probe(self, upstream: Upstream) -> None:
        try:
            health = await upstream.health()
        except Unanswered as error:
            why = "unreachable" if error.unreached else "timeout" if error.silent else str(error)
            self.seen[upstream.name] = why
            self.balancer.probed(upstream.name, self.clock(), Outcome.BROKEN)
            return
        except Exception:
            log.exception("server=%s probe failed in a way nobody foresaw", upstream.name)
            return
        self.seen[upstream.name] = health
        now = self.clock()
        leaving = health.state in ("draining", "failed")
        self.balancer.rest(upstream.name, now, _RESTING_SECONDS if leaving else 0.0)
        self.balancer.probed(upstream.name, now, Outcome.GOOD, loaded=health.loaded, waiting=health.waiting)

    def add(self, upstream: Upstream) -> None:
        self.upstreams.setdefault(upstream.name, upstream)
        self.balancer.add(upstream.name)
        self._hand_out()

    async def remove(self, name: str) -> None:
        upstream = self.upstreams.pop(name, None)
        self.balancer.remove(name)
        self.seen.pop(name, None)
        if upstream is not None:
            await upstream.close()

    async def close(self) -> None:
        for upstream in self.upstreams.values():
            await upstream.close()
