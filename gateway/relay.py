"""``Relay``: one request to the servers and the answer back, asked again only where that is safe.

A request may go elsewhere while no server has been given its body: then nothing was executed. One that was
given away is asked again at the same server alone, and only if that server keeps its ``Idempotency-Key``.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Final

from core.errors import ExecutionError, ServingError, UpstreamError
from gateway.asking import Ask, CutOff, Reply, Unanswered
from gateway.balancer import Outcome
from gateway.body import PEEK, model_in
from gateway.everywhere import ask_all
from gateway.fleet import Fleet
from gateway.headers import value_of
from gateway.refusals import BROKEN, SILENT, UNAVAILABLE, UNREACHED
from gateway.routes import Kind, job_in, kind_of, makes_a_job, model_of_path
from gateway.upstream import Upstream

log = logging.getLogger("batchmux.gateway")

_REFUSED: Final = (429, 503)
_FAILED: Final = (500, 502, 503)
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE", "PUT"})
_MOST_TRIES: Final = 4
_LONGEST_REST: Final = 5.0
_SMALL: Final = 64 * 1024


class Failure(Exception):
    """What the caller is told, and the sentence of the text-to-image contract for it."""

    def __init__(self, error: ServingError, sentence: str) -> None:
        super().__init__(error.code)
        self.error = error
        self.sentence = sentence


class Held:
    """A reply, and the server that counts it until ``done``."""

    def __init__(self, fleet: Fleet, upstream: Upstream, reply: Reply, *, counted: bool = True) -> None:
        self.reply = reply
        self.upstream = upstream
        self._fleet = fleet
        self._counted = counted
        self._answered = False

    def passing(self) -> None:
        """From here on an answer whose length is known waits for its caller alone."""
        known = any(name.lower() == b"content-length" for name, _ in self.reply.headers)
        if self._counted and known and not self._answered:
            self._answered = True
            self._fleet.answered(self.upstream)

    async def done(self, *, cut: bool = False, left: bool = False) -> None:
        """cut: the server broke off. left: the caller did not wait for the end."""
        await self.reply.close()
        if not self._counted:
            return
        self._counted = False
        outcome = _outcome(self.reply)
        if cut or left:
            outcome = Outcome.ERROR if cut else Outcome.NEUTRAL
        self._fleet.release(self.upstream, outcome, answered=self._answered)


class Relay:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def send(self, ask: Ask) -> Held:
        """Raises ``Failure``, and ``ServingError`` for what is wrong with the request's body."""
        kind = kind_of(ask.method, ask.path)
        if kind is Kind.JOB:
            return await self._to_its_holder(ask)
        if kind is Kind.EVERYWHERE:
            able = [each for each in self._fleet.upstreams.values() if each.takes(ask.path)]
            if len(able) > 1:
                return await self._to_all(ask, able)
        return await self._to_the_best(ask)

    async def _to_the_best(self, ask: Ask) -> Held:
        model = model_of_path(ask.path)
        if not ask.body.empty:
            beginning = await ask.body.peek()
            model = model or model_in(
                beginning, value_of(ask.headers, b"content-type"), complete=ask.body.complete
            )
        self._fleet.balancer.earn()
        tried: set[str] = set()
        keepers = self._keepers(ask)
        only = keepers[0] if keepers else None
        tries = 0
        refused: Held | None = None
        failure = Failure(UpstreamError("no_upstream", "no server can take this now"), UNAVAILABLE)
        while True:
            try:
                upstream = await self._fleet.take(
                    ask.path, model=model, tried=tried, only=only, wait=refused is None
                )
            except ServingError as error:
                if refused is not None:  # says best why nobody took it
                    return refused
                if tried or error.code == "queue_full":
                    raise (failure if tried else Failure(error, UNAVAILABLE)) from None
                raise Failure(error, self._why_nobody()) from None
            if refused is not None:
                await refused.done()
                refused = None
            tried.add(upstream.name)
            tries += 1
            try:
                reply = await upstream.ask(ask)
            except Unanswered as error:
                left = ask.body.gone or ask.body.fault is not None
                found = Outcome.BROKEN if error.unreached else Outcome.ERROR
                self._fleet.release(upstream, Outcome.NEUTRAL if left else found)
                if ask.body.fault is not None:
                    raise ask.body.fault from None
                failure = _failure(error)
                again = self._may_go_on(ask, error)
                if left or again is None or tries >= _MOST_TRIES or not self._fleet.balancer.may_retry():
                    raise failure from None
                if again == "there":
                    tried.discard(upstream.name)
                    only = upstream.name
                elif keepers:
                    only = next((name for name in keepers if name not in tried), only)
                continue
            except BaseException:
                self._fleet.release(upstream, Outcome.NEUTRAL)
                raise
            held = Held(self._fleet, upstream, reply)
            if (reply.status == 429 or reply.status >= 500) and not (ask.body.sent or ask.body.empty):
                # With the body not asked for: nothing was executed, and another may have room.
                self._rest(upstream, reply)
                if self._fleet.balancer.may_retry():
                    refused = held
                    if keepers:
                        only = next((name for name in keepers if name not in tried), only)
                    continue
            if makes_a_job(ask.path):
                await self._learn(held)
            return held

    def _may_go_on(self, ask: Ask, error: Unanswered) -> str | None:
        """Where a request without an answer may be asked again: "elsewhere", "there", or nowhere."""
        if error.unreached and not ask.body.sent:
            return "elsewhere"
        if ask.method in _SAFE and not error.silent:
            return "elsewhere" if ask.body.repeatable else None
        if not ask.body.empty and not ask.body.sent:
            return "elsewhere"
        kept = makes_a_job(ask.path) and value_of(ask.headers, b"idempotency-key")
        return "there" if kept and ask.body.complete and not error.silent else None

    def _keepers(self, ask: Ask) -> list[str]:
        """Where a job with an ``Idempotency-Key`` may be, the likeliest first: the same for every process.

        Rendezvous hashing (Thaler and Ravishankar 1998) of the servers that can be asked: while one is out,
        its keys alone go elsewhere.
        """
        key = value_of(ask.headers, b"idempotency-key") if makes_a_job(ask.path) else ""
        if not key:
            return []
        fleet = self._fleet
        now = fleet.clock()
        able = [
            each.name
            for each in fleet.balancer.standings
            if each.usable(now) and fleet.upstreams[each.name].takes(ask.path)
        ]
        return sorted(able, key=lambda name: blake2b(f"{name} {key}".encode(), digest_size=8).digest())

    def _why_nobody(self) -> str:
        """Of all that is known of servers that are out, what an operator should look at."""
        unreachable = [why for why in self._fleet.seen.values() if why == "unreachable"]
        return UNREACHED if unreachable and len(unreachable) == len(self._fleet.upstreams) else UNAVAILABLE

    def _rest(self, upstream: Upstream, reply: Reply) -> None:
        said = value_of([(name.lower(), value) for name, value in reply.headers], b"retry-after")
        seconds = float(said) if said.isdecimal() else 1.0
        fleet = self._fleet
        fleet.balancer.rest(upstream.name, fleet.clock(), min(seconds, _LONGEST_REST))

    async def _to_its_holder(self, ask: Ask) -> Held:
        """The server that knows the job; those that do not say 404 and have changed nothing."""
        if not ask.body.empty:
            await ask.body.peek()
        job = job_in(ask.path)
        unheard = False
        absent: Held | None = None
        for upstream in self._fleet.holders(job, ask.path):
            if not self._fleet.reachable(upstream):
                unheard = True
                continue
            if ask.body.sent and not ask.body.complete:
                break
            try:
                reply = await upstream.ask(ask)
            except Unanswered as error:
                if ask.body.gone or (ask.method not in _SAFE and ask.body.sent):
                    raise _failure(error) from None
                unheard = True
                continue
            held = Held(self._fleet, upstream, reply, counted=False)
            if reply.status != 404:
                if absent is not None:
                    await absent.done()
                self._fleet.remember(job, upstream)
                return held
            if absent is not None:
                await absent.done()
            absent = held
        if absent is not None and not unheard:
            return absent
        if absent is not None:
            await absent.done()
        fault = UpstreamError("no_upstream", "the server that may hold this cannot be reached; try again")
        raise Failure(fault, UNAVAILABLE)

    async def _to_all(self, ask: Ask, able: Sequence[Upstream]) -> Held:
        """One answer made of all; raises ``Failure`` where nobody answers."""
        if not ask.body.empty:
            await ask.body.whole(PEEK - 1)
        first, told = await ask_all(ask, [each for each in able if self._fleet.reachable(each)])
        return Held(self._fleet, first, told, counted=False)

    async def _learn(self, held: Held) -> None:
        """Which job an answer names: an answer that is short enough to be looked into."""
        import orjson

        from gateway.asking import once

        reply = held.reply
        length = value_of([(name.lower(), value) for name, value in reply.headers], b"content-length")
        if reply.status not in (200, 202) or not length.isdecimal() or int(length) > _SMALL:
            return
        try:
            content = await reply.whole(_SMALL)
        except CutOff:
            await held.done(cut=True)
            fault = UpstreamError("upstream_error", "the server's answer broke off")
            raise Failure(fault, BROKEN) from None
        reply.chunks = once(content)
        with suppress(orjson.JSONDecodeError):
            named = orjson.loads(content)
            job = (named.get("id") or named.get("job_id")) if isinstance(named, dict) else None
            if isinstance(job, str):
                self._fleet.remember(job, held.upstream)


def _outcome(reply: Reply) -> Outcome:
    """A refusal with ``Retry-After`` is what a sound server says when it has its fill."""
    polite = any(name.lower() == b"retry-after" for name, _ in reply.headers)
    if reply.status in _FAILED and not polite:
        return Outcome.ERROR
    return Outcome.NEUTRAL if reply.status in _REFUSED else Outcome.GOOD


def _failure(error: Unanswered) -> Failure:
    if error.unreached:
        return Failure(UpstreamError("no_upstream", "the server cannot be reached; try again"), UNREACHED)
    if error.silent:
        late = ExecutionError("deadline_exceeded", "the server did not answer in time; raise REQUEST_TIMEOUT")
        return Failure(late, SILENT)
    return Failure(UpstreamError("upstream_error", "the server broke off or answered nonsense"), BROKEN)
