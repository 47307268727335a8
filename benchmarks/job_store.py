"""(f) Durable jobs: how long an acknowledgement takes, how soon a crash is over, and what survives it.

Submissions arrive at a fixed rate whether or not the last one was answered, while a runner takes the jobs
and keeps a result for each; a bare write and sync of 4 KiB beside them shows what the disk takes alone.
The restart is of a store that a dead process left with thousands of jobs. ``--crashes N`` kills processes
at N random instants or more, thirty jobs each (minutes; see ``tests/api/crashes.py``).

Run: ``python -m benchmarks.job_store``. Exits 1 when a target is missed.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

from api.job_record import JobOutcome, JobRecord, NewJob, StoreLimits
from api.job_runner import JobRunner
from api.job_store import JobStore
from core.result import OnProgress
from tests.api.crashes import a_round

SUBMIT_TARGET = 0.025  # seconds, p99
RESTART_TARGET = 3.0
LEFT_BEHIND = 5000


@dataclass(frozen=True)
class Load:
    name: str
    rate: float
    body: int
    result: int
    judged: bool = True


LOADS = (
    Load("2 KB in, 2 KB out", 100, 2_000, 2_000),
    Load("2 KB in, 100 KB out", 100, 2_000, 100_000),
    Load("1.3 MB in, 1.3 MB out", 10, 1_300_000, 1_300_000, judged=False),
)


@dataclass(frozen=True)
class Outcome:
    submit: list[float]
    commits: int
    unfinished: int

    @property
    def p99(self) -> float:
        return quantiles(self.submit, n=100)[98]


async def submissions(folder: Path, load: Load, seconds: float) -> Outcome:
    result = os.urandom(load.result)

    async def work(job: JobRecord, on_progress: OnProgress) -> JobOutcome:
        return JobOutcome(data=result)

    async def submit(number: int) -> str:
        due = began + number / load.rate
        await asyncio.sleep(due - clock())
        started = clock()
        job, _ = await runner.create(NewJob(owner=f"{number % 4}", dialect="x", body=os.urandom(load.body)))
        latencies.append(clock() - started)
        return job.id

    clock = time.perf_counter
    latencies: list[float] = []
    with JobStore(folder) as store:
        runner = JobRunner(store, {"x": work})
        runner.start()
        began = clock() + 0.1
        total = int(load.rate * seconds)
        ids = await asyncio.gather(*(submit(number) for number in range(total)))
        ends = [await runner.wait(f"{number % 4}", id, 30) for number, id in enumerate(ids)]
        await runner.drain(5)
        return Outcome(latencies, store.commits, sum(job.outcome is None for job in ends))


def sync_seconds(folder: Path, times: int = 200) -> list[float]:
    """A write and sync of 4 KiB: the least that an acknowledgement can take."""
    file = os.open(folder / "bare", os.O_CREAT | os.O_WRONLY)
    took = []
    for at in range(times):
        started = time.perf_counter()
        os.pwrite(file, bytes(4096), at * 4096)
        os.fdatasync(file)
        took.append(time.perf_counter() - started)
    os.close(file)
    return took


async def restart_seconds(folder: Path) -> float:
    """From the start of opening to the first call of a job's work."""
    limits = StoreLimits(max_live=LEFT_BEHIND)
    with JobStore(folder, limits) as store:
        jobs = (NewJob(owner=f"{n % 4}", dialect="x", body=os.urandom(2000)) for n in range(LEFT_BEHIND))
        await asyncio.gather(*(store.create(job) for job in jobs))
        await store.claim(LEFT_BEHIND // 2)  # left running, as by a process that died
    begun = asyncio.Event()

    async def work(job: JobRecord, on_progress: OnProgress) -> JobOutcome:
        begun.set()
        return JobOutcome(data=b"")

    started = time.perf_counter()
    with JobStore(folder, limits) as store:
        runner = JobRunner(store, {"x": work})
        runner.start()
        await begun.wait()
        took = time.perf_counter() - started
        await runner.drain(5)
    return took


def crashes(folder: Path, wanted: int) -> int:
    """How many deaths were survived. Raises ``AssertionError`` when a promise is broken."""
    deaths = seed = 0
    while deaths < wanted:
        seed += 1
        deaths += a_round(folder / f"round {seed}", 1000 + seed).deaths
    return deaths


def print_submissions(folder: Path, seconds: float) -> bool:
    syncs = sync_seconds(folder)
    print(f"(f) durable jobs; a bare sync here: p50 {pick(syncs, 50):.1f} ms, p99 {pick(syncs, 99):.1f} ms")
    print("jobs                    per s   jobs  p50 ms  p99 ms  max ms  commits  unfinished")
    passed = True
    for number, load in enumerate(LOADS):
        outcome = asyncio.run(submissions(folder / str(number), load, seconds))
        took = outcome.submit
        print(
            f"{load.name:22} {load.rate:>6.0f} {len(took):>6} {pick(took, 50):>7.1f} {pick(took, 99):>7.1f} "
            f"{max(took) * 1e3:>7.1f} {outcome.commits:>8} {outcome.unfinished:>11}"
        )
        passed &= (outcome.p99 <= SUBMIT_TARGET or not load.judged) and not outcome.unfinished
    verdict = "met" if passed else "MISSED"
    print(f"target: p99 <= {SUBMIT_TARGET * 1e3:g} ms at 100 per s, none unfinished: {verdict}")
    return passed


def pick(seconds: list[float], percent: int) -> float:
    return quantiles(seconds, n=100)[percent - 1] * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--crashes", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="on the disk in question; the default is the system's own"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        passed = print_submissions(folder, options.seconds)
        took = asyncio.run(restart_seconds(folder / "restart"))
        on_time = took <= RESTART_TARGET
        print(
            f"restart with {LEFT_BEHIND} jobs, half of them running: first job after {took:.2f} s; ", end=""
        )
        print(f"target: <= {RESTART_TARGET:g} s: {'met' if on_time else 'MISSED'}")
        if options.crashes:
            print(f"{crashes(folder, options.crashes)} deaths at random instants: every promise kept")
    return 0 if passed and on_time else 1


if __name__ == "__main__":
    sys.exit(main())
