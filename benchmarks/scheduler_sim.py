"""The real scheduler in virtual time against window batching in order of arrival and against no batching.

``python -m benchmarks.scheduler_sim [--plot]``

Traffic: 4, 8 or 40 steps at 512² or 1024², each of the six equally likely, one key per size. Arrivals
are Poisson, or Poisson bursts of 1 + Geometric requests, 6 on average. All contenders see the same traces.

Load: 100 % is what the device does when every step is a full batch of its policy's size, the most that
any of the contenders could ever do; so the loads are the same requests a second for all three.

Device: one step of rows with ``w = tokens * (1 + tokens / 1170)`` each (the second term stands for
attention) takes ``50 ms * (0.978**p + (0.31 * sum(w) / w_512)**p) ** (1/p)`` with p = 2.5: a floor of
launches and weights, then proportional. The three constants are fitted: batches of 2, 4, 8 at 512² have
1.83, 2.71, 3.11 times the throughput of one row and 2 at 1024² have 1.02; SGLang publishes 1.82, 2.77,
3.14 and 1.02 for Qwen-Image on an H200. Encoding a row takes 1.2 and decoding it 0.8 of its proportional
part of a step.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from batching.job import Job
from batching.scheduler import BatchPolicy, Scheduler
from benchmarks.virtual_device import Arrival, simulate
from core.request import InferenceRequest, Task

KINDS = ("poisson", "bursty")
LOADS = (0.5, 0.8, 0.95)
SIDES = (512, 1024)
STEPS = (4, 8, 40)
BURST = 6
MEAN_TARGET = 0.6  # of window batching's, at 80 % load
P99_TARGET = 1.0
ATTENTION = 1170  # tokens at which attention costs as much as all else
PLOT = Path("docs/img/scheduler_latency.png")

_QUEUE = 1_000_000  # nothing is refused: all contenders must do the same work
CONTENDERS = {
    "step joining": BatchPolicy(max_queue=_QUEUE, max_queue_bytes=1 << 60),
    "window FIFO": BatchPolicy(max_queue=_QUEUE, max_queue_bytes=1 << 60, join="batch", order="fifo"),
    "serial": BatchPolicy(max_queue=_QUEUE, max_queue_bytes=1 << 60, max_batch_size=1, order="fifo"),
}


class Gpu:
    def prepare(self, rows: Sequence[InferenceRequest]) -> float:
        return 1.2 * 0.050 * self._proportional(rows)

    def step(self, rows: Sequence[InferenceRequest]) -> float:
        power = 2.5
        return 0.050 * float((0.978**power + self._proportional(rows) ** power) ** (1 / power))

    def decode(self, rows: Sequence[InferenceRequest]) -> float:
        return 0.8 * 0.050 * self._proportional(rows)

    def _proportional(self, rows: Sequence[InferenceRequest]) -> float:
        work = sum(row.tokens * (1 + row.tokens / ATTENTION) for row in rows)
        return 0.31 * work / (1024 * (1 + 1024 / ATTENTION))

    def capacity(self, batch: int) -> float:
        """Requests a second of the mix when every batch is full."""
        seconds = 0.0
        for side in SIDES:
            for steps in STEPS:
                rows = [make_request("", side, steps)] * batch
                seconds += (steps * self.step(rows) + self.prepare(rows) + self.decode(rows)) / batch
        return len(SIDES) * len(STEPS) / seconds


def make_request(id: str, side: int, steps: int) -> InferenceRequest:
    size = (side, side)
    return InferenceRequest(
        id=id,
        task=Task.EDIT,
        model="m",
        prompt="",
        size=size,
        canvas=size,
        steps=steps,
        cfg=1.0,
        seed=0,
        tokens=side * side // 256,
    )


def trace(kind: str, rate: float, jobs: int, seed: int) -> list[Arrival]:
    """``jobs`` arrivals at ``rate`` a second on average."""
    rng = random.Random(seed)
    now, arrivals = 0.0, list[Arrival]()
    while len(arrivals) < jobs:
        burst = 1
        if kind == "bursty":
            while rng.random() < 1 - 1 / BURST:
                burst += 1
        now += rng.expovariate(rate / (BURST if kind == "bursty" else 1))
        for _ in range(burst):
            request = make_request(str(len(arrivals)), rng.choice(SIDES), rng.choice(STEPS))
            arrivals.append((now, request))
    return arrivals[:jobs]


@dataclass(slots=True)
class Latencies:
    """Of one contender at one load, all seeds together, in seconds."""

    all: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.all)

    def percentile(self, percent: int) -> float:
        return statistics.quantiles(self.all, n=100)[percent - 1]


def run(policy: BatchPolicy, arrivals: Sequence[Arrival]) -> list[float]:
    latencies: list[float] = []

    def answered(job: Job, now: float) -> None:
        latencies.append(now - job.arrival)

    simulate(Scheduler(policy), arrivals, Gpu(), answered)
    return latencies


def measure(jobs: int, seeds: int) -> dict[tuple[str, float, str], Latencies]:
    capacity = Gpu().capacity(BatchPolicy().max_batch_size)
    measured: dict[tuple[str, float, str], Latencies] = {}
    for kind in KINDS:
        for load in LOADS:
            traces = [trace(kind, load * capacity, jobs, seed) for seed in range(seeds)]
            for name, policy in CONTENDERS.items():
                latencies = measured[kind, load, name] = Latencies()
                for arrivals in traces:
                    latencies.all += run(policy, arrivals)
    return measured


def print_table(measured: dict[tuple[str, float, str], Latencies]) -> bool:
    print("arrivals  load  scheduler      mean s     p50     p95     p99   of window: mean   p99")
    met = True
    for (kind, load, name), latencies in measured.items():
        window = measured[kind, load, "window FIFO"]
        p50, p95, p99 = (latencies.percentile(percent) for percent in (50, 95, 99))
        mean_ratio, p99_ratio = latencies.mean / window.mean, p99 / window.percentile(99)
        print(
            f"{kind:>8} {load:>5.0%}  {name:<13} {latencies.mean:>7.2f} {p50:>7.2f} {p95:>7.2f} {p99:>7.2f}"
            f"              {mean_ratio:>6.2f} {p99_ratio:>5.2f}"
        )
        if load == 0.8 and name == "step joining":
            met = met and mean_ratio <= MEAN_TARGET and p99_ratio <= P99_TARGET
    return met


def plot(measured: dict[tuple[str, float, str], Latencies], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    colours = {"step joining": "tab:green", "window FIFO": "tab:blue", "serial": "tab:gray"}
    for axis, kind in zip(axes, KINDS, strict=True):
        for name, colour in colours.items():
            percent = [load * 100 for load in LOADS]
            rows = [measured[kind, load, name] for load in LOADS]
            axis.plot(percent, [row.mean for row in rows], "o-", color=colour, label=f"{name}, mean")
            axis.plot(
                percent, [row.percentile(99) for row in rows], "s--", color=colour, label=f"{name}, p99"
            )
        axis.set(
            title=f"{kind} arrivals", xlabel="load, % of full batches", ylabel="latency, s", yscale="log"
        )
        axis.grid(True, which="both", alpha=0.3)
    axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=1000, help="jobs in each trace")
    parser.add_argument("--seeds", type=int, default=12, help="traces for each kind and load")
    parser.add_argument("--plot", action="store_true", help=f"write {PLOT}")
    options = parser.parse_args()
    measured = measure(options.jobs, options.seeds)
    print(f"(b) scheduler in virtual time: {options.seeds} traces of {options.jobs} jobs each")
    met = print_table(measured)
    print(
        f"target at 80 %: mean <= {MEAN_TARGET} of window batching's and p99 no worse, both kinds: "
        f"{'met' if met else 'MISSED'}"
    )
    if options.plot:
        plot(measured, PLOT)
        print(f"plot: {PLOT}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
