"""Mixed vision requests at many clients, and loads and unloads among them: what came wrong, what memory did.

The parts that ``benchmarks.vision`` runs at full size, and a test of the ordinary suite at a small one.
"""

import itertools
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.vision_asks import ALIKE, SLUGS, Call, call, distinct, mixed, unlike
from benchmarks.vision_server import Server, Told, fire

KINDS = ("sam3", "grounding_dino", "depth_anything", "dinov3")
_JOBS = "batchmux_jobs"


@dataclass(frozen=True, kw_only=True)
class Soak:
    """lost: requests with no answer, or with one of another status. misrouted: with what is not their own.

    settled, after: bytes of the server in memory after the first part of the requests, and after all.
    accepted: requests that reached the queue, by the client's own count.
    """

    answered: int
    lost: int
    misrouted: int
    accepted: int
    before: int
    settled: int
    after: int

    @property
    def growth(self) -> int:
        return self.after - self.settled


@dataclass(frozen=True)
class Answered:
    """What each of ``calls`` gives when nothing else is asked at the same time."""

    calls: Sequence[Call]
    alone: Sequence[bytes]


def answer_alone(running: Server, each: int) -> Answered:
    calls = distinct(each)
    answers = [running.ask(one.path, one.body) for one in calls]
    for one, answer in zip(calls, answers, strict=True):
        assert answer.status == one.status, answer.body[:300]
    return Answered(calls, [answer.body for answer in answers])


def soak(running: Server, expected: Answered, *, count: int, clients: int, settle: int) -> Soak:
    """``count`` requests, of which memory has ``settle`` to grow by."""
    order = mixed(list(expected.calls), count)
    before = running.resident
    told = fire(running, [expected.calls[at] for at in order[:settle]], clients)
    settled = running.resident
    told += fire(running, [expected.calls[at] for at in order[settle:]], clients)
    after = running.resident
    lost = misrouted = accepted = 0
    for at, answer in zip(order, told, strict=True):
        if answer.status != expected.calls[at].status:
            lost += 1
        elif unlike(expected.calls[at], answer.body, expected.alone[at]) > ALIKE:
            misrouted += 1
        accepted += answer.status == 200
    return Soak(
        answered=len(told),
        lost=lost,
        misrouted=misrouted,
        accepted=accepted,
        before=before,
        settled=settled,
        after=after,
    )


def unaccounted(metrics: dict[str, float]) -> float:
    """Requests that were accepted and are in none of the states that one can be in."""
    states = [value for name, value in metrics.items() if name.startswith((f"{_JOBS}{{", f"{_JOBS}_ended"))]
    return metrics[f"{_JOBS}_accepted_total"] - sum(states)


@dataclass(frozen=True, kw_only=True)
class Churn:
    """failed: sentences of answers that were not 200, of requests as of loads."""

    turns: int
    answered: int
    misrouted: int
    failed: tuple[str, ...]
    settled: int
    after: int

    @property
    def growth(self) -> int:
        return self.after - self.settled


def churn(running: Server, *, turns: int, clients: int, settle: int = 4) -> Churn:
    """A model unloaded and loaded ``turns`` times, each kind in its turn, while ``clients`` ask all four.

    Memory is read with all four loaded: after ``settle`` turns, and after the last.
    """
    calls = [call(slug, number) for number in range(4) for slug in SLUGS]
    alone = [running.ask(one.path, one.body) for one in calls]
    told: list[tuple[int, Told]] = []
    over = threading.Event()

    def client(first: int) -> None:
        for at in itertools.count(first, clients):
            if over.is_set():
                return
            one = calls[at % len(calls)]
            told.append((at % len(calls), running.ask(one.path, one.body)))

    managed: list[Told] = []
    settled = running.resident
    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(client, first) for first in range(clients)]
        try:
            for turn in range(turns):
                body = json.dumps({"model_type": KINDS[turn % len(KINDS)]}).encode()
                managed += [running.ask("/models/unload", body), running.ask("/models/load", body)]
                if turn + 1 == settle:
                    settled = running.resident
        finally:
            over.set()
        for done in asking:
            done.result()
    for kind in KINDS:
        managed.append(running.ask("/models/load", json.dumps({"model_type": kind}).encode()))
    failed = [answer for answer in [*managed, *(answer for _, answer in told)] if answer.status != 200]
    return Churn(
        turns=turns,
        answered=len(told),
        misrouted=sum(
            unlike(calls[at], answer.body, alone[at].body) > ALIKE
            for at, answer in told
            if answer.status == 200
        ),
        failed=tuple(f"{answer.status} {answer.body[:200]!r}" for answer in failed),
        settled=settled,
        after=running.resident,
    )
