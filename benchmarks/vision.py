"""The vision service over HTTP: right under load, flat in memory, and against a server without batching.

(a) mixed requests at 32 clients, each answer compared with what the same request gives alone; (b) each model
beside ``benchmarks.naive_vision``, both servers up at once and asked in turns; (c) models unloaded and loaded
while requests run. All with the pocket checkpoints, one thread of a CPU for each server's arithmetic.

Run: ``python -m benchmarks.vision``. Exits 1 when a target is missed.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from benchmarks.http_load import idle_share
from benchmarks.vision_asks import Call, described
from benchmarks.vision_server import NAIVE, Server, fire, server
from benchmarks.vision_soak import Churn, Soak, answer_alone, churn, soak, unaccounted

MB = 1e6
FLAT = 64 * MB  # what memory may grow by once the first requests were answered
LEAST_RATIO = {
    1: 0.6,
    8: 1.0,
    32: 1.0,
}  # of requests a second, by clients; beside another server no time is exact
REQUESTS = {1: 16, 8: 48, 32: 96}  # of a round, by clients
PICTURE = (640, 480)
SHARING = 8  # requests that show one picture


@dataclass(frozen=True)
class Row:
    """call: of a number; a picture has its own number, so that nothing is remembered from another request."""

    name: str
    call: Callable[[int], Call]


ROWS = (
    Row("sam3", lambda n: described("sam3", shown=n, words=n, size=PICTURE)),
    Row("sam3, 8 to a picture", lambda n: described("sam3", shown=n // SHARING, words=n, size=PICTURE)),
    Row("grounding-dino", lambda n: described("grounding-dino", shown=n, words=n, size=PICTURE)),
    Row("depth-anything", lambda n: described("depth-anything", shown=n, words=n, size=PICTURE)),
    Row("dinov3", lambda n: described("dinov3", shown=n, words=n, size=PICTURE)),
    Row(
        "dinov3, ours base64",
        lambda n: described("dinov3", shown=n, words=n, size=PICTURE, encoding="base64"),
    ),
)


@dataclass(frozen=True)
class Round:
    """seconds: of all its requests together. latencies: of each."""

    seconds: float
    latencies: tuple[float, ...]
    cpu: float

    @classmethod
    def of(cls, running: Server, calls: Sequence[Call], clients: int) -> "Round":
        cpu, started = running.cpu_seconds, time.perf_counter()
        told = fire(running, calls, clients)
        seconds = time.perf_counter() - started
        wrong = [answer for answer in told if answer.status != 200]
        assert not wrong, wrong[0].body[:300]
        return cls(seconds, tuple(answer.seconds for answer in told), running.cpu_seconds - cpu)


@dataclass(frozen=True)
class Cell:
    """One row at a number of clients: rounds of ours and of the other's, in pairs."""

    row: Row
    clients: int
    ours: tuple[Round, ...]
    naive: tuple[Round, ...]

    @property
    def faster(self) -> float:
        """Requests a second, ours to theirs: the median of the pairs."""
        return median(other.seconds / own.seconds for own, other in zip(self.ours, self.naive, strict=True))

    @property
    def missed(self) -> str:
        least = LEAST_RATIO[self.clients]
        if self.faster >= least:
            return ""
        asked = f"{self.row.name}, {self.clients} clients"
        return f"{asked}: {self.faster:.2f} times the naive rate, target {least:g}"

    def __str__(self) -> str:
        rates = [median(len(one.latencies) / one.seconds for one in side) for side in self._sides]
        middles = [median(_latencies(side)) * 1e3 for side in self._sides]
        tails = [quantiles(_latencies(side), n=100)[-1] * 1e3 for side in self._sides]
        work = [sum(one.cpu for one in side) / len(_latencies(side)) * 1e3 for side in self._sides]
        cells = "".join(f"{own:9.1f}{other:9.1f}" for own, other in (rates, middles, tails, work))
        return f"{self.row.name:22}{self.clients:4}{cells}{self.faster:8.2f}{tails[1] / tails[0]:8.2f}"

    @property
    def _sides(self) -> tuple[tuple[Round, ...], tuple[Round, ...]]:
        return self.ours, self.naive


def _latencies(rounds: Sequence[Round]) -> list[float]:
    return [seconds for one in rounds for seconds in one.latencies]


HEADER = (
    f"{'':22}{'':4}{'requests/s':>18}{'median ms':>18}{'p99 ms':>18}{'CPU-ms each':>18}{'ratio of':>16}\n"
    f"{'':22}{'cl.':>4}" + f"{'ours':>9}{'naive':>9}" * 4 + f"{'rate':>8}{'p99':>8}"
)


def compare(row: Row, ours: Server, naive: Server, rounds: int, requests: dict[int, int]) -> Iterator[Cell]:
    """Each round asks both servers the same, of pictures that neither has seen."""
    shown = 0
    for clients, count in requests.items():
        pairs: list[tuple[Round, Round]] = []
        for turn in range(rounds + 1):
            calls = [row.call(shown + at) for at in range(count)]
            shown += count
            first, second = (ours, naive) if turn % 2 else (naive, ours)
            one, other = Round.of(first, calls, clients), Round.of(second, calls, clients)
            pairs.append((one, other) if first is ours else (other, one))
        own, others = zip(*pairs[1:], strict=True)  # the first one warms up
        yield Cell(row, clients, own, others)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--requests", type=int, default=1000, help="of (a)")
    arguments.add_argument("--rounds", type=int, default=3, help="of each pair of (b)")
    arguments.add_argument("--turns", type=int, default=200, help="unloads and loads of (c)")
    options = arguments.parse_args()
    print(f"{os.cpu_count()} cores, of which others leave {idle_share():.0%} idle; the pocket checkpoints")
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        with server(Path(folder)) as ours:
            missed += under_load(ours, options.requests)
            with server(Path(folder), NAIVE) as naive:
                missed += side_by_side(ours, naive, options.rounds)
        with server(Path(folder)) as ours:
            missed += coming_and_going(ours, options.turns)
    print("\n".join(f"MISSED: {fault}" for fault in missed) or "all targets met")
    return 1 if missed else 0


def under_load(ours: Server, count: int) -> list[str]:
    expected = answer_alone(ours, each=24)
    started = time.perf_counter()
    done: Soak = soak(ours, expected, count=count, clients=32, settle=min(100, count // 2))
    seconds = time.perf_counter() - started
    lost_track = unaccounted(ours.metrics())
    ours.ask("/models/unload-all", b"")
    emptied = ours.resident
    print(
        f"(a) {done.answered} mixed requests of {len(expected.calls)} kinds at 32 clients, {seconds:.0f} s: "
        f"{done.misrouted} misrouted, {done.lost} lost, {lost_track:g} unaccounted\n"
        f"    memory {done.before / MB:.0f} MB, {done.settled / MB:.0f} MB after the first part, "
        f"{done.after / MB:.0f} MB after all: {done.growth / MB:+.0f} MB; "
        f"{emptied / MB:.0f} MB once the models are unloaded",
        flush=True,
    )
    faults = (
        []
        if done.growth <= FLAT and emptied <= done.settled
        else [f"(a) memory grew by {done.growth / MB:.0f} MB"]
    )
    if done.misrouted or done.lost or lost_track or done.answered != count:
        faults.append("(a) not everyone got their own answer")
    return faults


def side_by_side(ours: Server, naive: Server, rounds: int) -> list[str]:
    print(f"(b) the median of {rounds} pairs of rounds; {REQUESTS} requests in a round by clients\n{HEADER}")
    missed = []
    for row in ROWS:
        for cell in compare(row, ours, naive, rounds, REQUESTS):
            print(cell, flush=True)
            missed.append(cell.missed)
    return [fault for fault in missed if fault]


def coming_and_going(ours: Server, turns: int) -> list[str]:
    started = time.perf_counter()
    done: Churn = churn(ours, turns=turns, clients=4)
    seconds = time.perf_counter() - started
    print(
        f"(c) {done.turns} unloads and loads, {seconds:.0f} s, while 4 clients got {done.answered} answers: "
        f"{len(done.failed)} failed, {done.misrouted} misrouted\n"
        f"    memory {done.settled / MB:.0f} MB after the first turns, {done.after / MB:.0f} MB after all: "
        f"{done.growth / MB:+.0f} MB",
        flush=True,
    )
    faults = [f"(c) {answer}" for answer in done.failed[:3]]
    if done.misrouted:
        faults.append("(c) not everyone got their own answer")
    return faults + ([] if done.growth <= FLAT else [f"(c) memory grew by {done.growth / MB:.0f} MB"])


if __name__ == "__main__":
    sys.exit(main())
