"""What the mux itself costs: a pipeline that computes nothing, many threads, many batch keys.

``python -m benchmarks.mux_overhead``
"""

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from batching.mux import BatchMux, BatchPolicy
from core.request import Image, InferenceRequest, Task
from core.result import InferenceResult

SECONDS_TARGET = 1.0
P99_TARGET = 0.030


@dataclass(slots=True)
class FreeState:
    request: InferenceRequest
    remaining: int = 1

    @property
    def finished(self) -> bool:
        return self.remaining == 0


class FreePipeline:
    """One step, no work. The picture's pixels are the request's id."""

    def prepare(self, requests: Sequence[InferenceRequest]) -> list[FreeState]:
        return [FreeState(request) for request in requests]

    def step(self, states: Sequence[FreeState]) -> None:
        for state in states:
            state.remaining -= 1

    def decode(self, states: Sequence[FreeState]) -> list[InferenceResult]:
        return [
            InferenceResult(
                id=state.request.id,
                output=picture_of(state.request.id, *state.request.canvas),
                model=state.request.model,
                seed=0,
                steps=1,
            )
            for state in states
        ]


def picture_of(id: str, width: int, height: int) -> Image:
    size = width * height * 3
    return Image(pixels=id.encode().ljust(size)[:size], width=width, height=height, digest=id)


def make_request(id: str, key: int) -> InferenceRequest:
    size = (16, 16 + key)
    return InferenceRequest(
        id=id,
        task=Task.EDIT,
        model="free",
        prompt="",
        size=size,
        canvas=size,
        steps=1,
        cfg=1.0,
        seed=0,
        tokens=1,
    )


@dataclass(slots=True)
class Outcome:
    seconds: float
    latencies: list[float]
    lost: int
    misrouted: int
    mean_batch: float

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.latencies, n=100)[98]

    @property
    def passed(self) -> bool:
        return (
            self.seconds <= SECONDS_TARGET and self.p99 <= P99_TARGET and not self.lost and not self.misrouted
        )


def run(jobs: int = 10_000, threads: int = 64, keys: int = 16, batch: int = 4) -> Outcome:
    """Each thread submits, waits for its answer, checks that it is its own, and submits again."""
    requests = [make_request(f"job-{n}", n % keys) for n in range(jobs)]
    pictures = [picture_of(request.id, *request.canvas) for request in requests]
    latencies: list[list[float]] = [[] for _ in range(threads)]
    misrouted = [0] * threads
    barrier = threading.Barrier(threads + 1)

    with BatchMux(lambda model: FreePipeline(), BatchPolicy(max_batch_size=batch)) as mux:

        def client(index: int) -> None:
            own = latencies[index]
            barrier.wait()
            for n in range(index, jobs, threads):
                started = time.perf_counter()
                result = mux.submit(requests[n]).result(timeout=30)
                own.append(time.perf_counter() - started)
                misrouted[index] += result.id != requests[n].id or result.image != pictures[n]

        pool = [threading.Thread(target=client, args=(index,)) for index in range(threads)]
        for thread in pool:
            thread.start()
        barrier.wait()
        started = time.perf_counter()
        for thread in pool:
            thread.join()
        seconds = time.perf_counter() - started
        stats = mux.stats()
    steps = sum(stats.batch_sizes.values())
    answered = [latency for own in latencies for latency in own]
    lost = jobs - len(answered) + (not stats.balanced)
    rows = sum(size * count for size, count in stats.batch_sizes.items())
    return Outcome(seconds, answered, lost, sum(misrouted), rows / steps)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--keys", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    outcomes = [run(options.jobs, options.threads, options.keys) for _ in range(options.repeats)]
    print(f"(a) mux overhead: {options.jobs} jobs, {options.threads} threads, {options.keys} keys, no work")
    print(" run  seconds   jobs/s  p50 ms  p99 ms  max ms  batch  lost  misrouted")
    for number, outcome in enumerate(outcomes, 1):
        ordered = sorted(outcome.latencies)
        print(
            f"{number:>4} {outcome.seconds:>8.3f} {options.jobs / outcome.seconds:>8.0f} "
            f"{ordered[len(ordered) // 2] * 1e3:>7.2f} {outcome.p99 * 1e3:>7.2f} {ordered[-1] * 1e3:>7.2f} "
            f"{outcome.mean_batch:>6.2f} {outcome.lost:>5} {outcome.misrouted:>10}"
        )
    passed = any(outcome.passed for outcome in outcomes) and not any(o.lost or o.misrouted for o in outcomes)
    print(
        f"target: <= {SECONDS_TARGET:g} s and p99 <= {P99_TARGET * 1e3:g} ms in the best run, 0 lost, "
        f"0 misrouted: {'met' if passed else 'MISSED'}"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
