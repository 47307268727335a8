"""The capacity model keeps its books, and a bad balancer shows in its figures."""

import itertools
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from benchmarks.capacity import Device, Row, measure, met, pairs
from benchmarks.fleet_traffic import KINDS, STEPS, make_request, traffic
from benchmarks.virtual_fleet import Account, Faults, VirtualFleet
from gateway.balancer import Balancer, Pick, Policy

ROOT = Path(__file__).resolve().parent.parent.parent
DEADLY = Faults(lifetime=60.0, boot=3.0, load=6.0)
UNDYING = Faults(lifetime=math.inf)


class FirstWorker(Balancer):
    """The planted bug: the first worker with room, however much it has to do."""

    def pick(
        self,
        now: float,
        *,
        model: str | None = None,
        among: Collection[str] | None = None,
        tried: Collection[str] = (),
    ) -> Pick:
        usable = [each for each in self.standings if each.usable(now) and each.name not in tried]
        free = [each.name for each in usable if each.outstanding < self.policy.max_outstanding]
        return Pick(free[0]) if free else Pick(None, full=bool(usable))


def run(kind: str, *, balancer: Balancer | None = None, faults: Faults = DEADLY, seed: int = 0) -> Account:
    """Six workers at 60 % for a thousand requests."""
    row = measure(
        kind,
        6,
        device=Device(),
        load=0.6,
        price=1.0,
        requests=1000,
        faults=faults,
        seed=seed,
        balancer=balancer,
    )
    return row.account


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost(kind: str) -> None:
    """Workers die under half of the requests; each still has exactly one end."""
    account = run(kind)
    assert account.deaths >= 10
    assert account.failed >= 1
    assert account.waiting == 0
    assert account.arrived == account.answered + account.failed


@pytest.mark.parametrize("until", [7.3, 40.0, 120.0])
def test_a_run_that_is_cut_off_knows_what_still_waits(until: float) -> None:
    """In the middle of everything, too."""
    fleet = VirtualFleet(3, Balancer(Policy()), Device(), faults=DEADLY)
    account = fleet.run(traffic("bursty", 4.0, until, 1), until, finish=False)
    assert account.waiting >= 10, "three workers cannot keep up with this"
    assert account.arrived == account.answered + account.failed + account.waiting


@pytest.mark.parametrize("kind", KINDS)
def test_littles_law_holds(kind: str) -> None:
    """Requests in the system = rate x time in it; the left side is counted apart from the latencies."""
    rate, seconds = 3.0, 900.0
    fleet = VirtualFleet(6, Balancer(Policy()), Device(), faults=UNDYING)
    account = fleet.run(traffic(kind, rate, seconds, 0), seconds)
    expected = account.answered / seconds * statistics.fmean(account.latencies)
    assert account.present == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_balancer_that_always_picks_the_first_worker_is_seen(kind: str) -> None:
    """Else the model would find any balancer good."""
    sound = run(kind, faults=UNDYING)
    bad = run(kind, faults=UNDYING, balancer=FirstWorker(Policy()))
    p99 = [statistics.quantiles(account.latencies, n=100)[98] for account in (sound, bad)]
    assert p99[1] > 1.5 * p99[0]
    assert statistics.fmean(bad.latencies) > 1.5 * statistics.fmean(sound.latencies)


def test_a_seed_is_a_run() -> None:
    """A figure that cannot be had again cannot be argued about; and another seed is another run."""
    assert run("bursty", seed=3) == run("bursty", seed=3)
    assert run("bursty", seed=3) != run("bursty", seed=4)


def test_one_request_alone_takes_what_the_device_says() -> None:
    """Encoding, four steps and decoding, and no waiting."""
    device = Device()
    fleet = VirtualFleet(2, Balancer(Policy()), device, faults=UNDYING)
    account = fleet.run([(1.0, make_request("a", 4))], 10.0)
    [latency] = account.latencies
    assert latency == pytest.approx(0.31 + 4 * 0.0621 + 0.31)
    assert account.busy == pytest.approx(latency)
    assert account.present == pytest.approx(latency / 10.0)
    assert account.paid == 20.0


def test_deaths_and_cold_starts_cost_answers_and_time() -> None:
    """What is under way at a death fails; what follows may wait for the load of the model."""
    lived = run("diurnal", faults=UNDYING)
    died = run("diurnal", faults=DEADLY)
    assert (lived.deaths, lived.failed) == (0, 0)
    assert max(died.latencies) > max(lived.latencies) + DEADLY.load / 2
    assert died.failed < 0.1 * died.arrived


def test_a_request_that_no_worker_took_is_tried_elsewhere() -> None:
    """A refused connection executes nothing, so it must not cost an answer while others live."""
    dead = Faults(lifetime=5.0, boot=1e6, load=0.0)
    balancer = Balancer(Policy())
    fleet = VirtualFleet(40, balancer, Device(), faults=dead, seed=1)
    account = fleet.run(((at / 4, make_request(f"{at}", 4)) for at in range(20)), 5.0)
    refused = account.picks - account.arrived
    assert account.deaths >= 15
    assert refused >= 1
    assert account.answered + account.failed == account.arrived
    assert account.answered >= 12


@pytest.mark.parametrize("kind", KINDS)
def test_traffic_has_the_rate_and_the_shape_that_it_is_given(kind: str) -> None:
    """The load means nothing otherwise."""
    seconds = 400.0
    times = [[at for at, _ in traffic(kind, 5.0, seconds, seed)] for seed in range(10)]
    assert statistics.fmean(len(run) for run in times) == pytest.approx(5.0 * seconds, rel=0.05)
    assert all(run == sorted(run) and run[-1] < seconds for run in times)
    counts = [0] * 100
    for at in itertools.chain.from_iterable(times):
        counts[int(at / seconds * 100)] += 1
    if kind == "diurnal":
        assert 2.2 < sum(counts[45:55]) / (sum(counts[:5]) + sum(counts[95:])) < 3.8
    else:  # of one trace: a Poisson process of an even rate has a dispersion of 1
        slots = [0] * 400
        for at in times[0]:
            slots[int(at)] += 1
        assert statistics.variance(slots) / statistics.fmean(slots) > 2
    assert {request.steps for _, request in traffic(kind, 5.0, 20.0, 0)} == set(STEPS)


def test_the_device_is_what_was_measured() -> None:
    """Widths that were measured as they were, those between them on the line."""
    device, request = Device(), make_request("", 4)
    assert device.step([request] * 4) == pytest.approx(4 * 0.87 * 0.0621)
    assert device.share(3) == pytest.approx(0.885)
    assert device.share(20) == 0.85
    measured = (ROOT / "benchmarks/results/2026-11-21-cpu-models-and-dialects.md").read_text()
    assert "| pocket-edit | 256 | 62.1 ms | 0.90 | 0.87 | 0.85 |" in measured
    assert pairs("2:0.5,1:1") == ((1, 1.0), (2, 0.5))


def row(kind: str, workers: int, latency: float, answered: int) -> Row:
    account = Account(1000, answered, 1000 - answered, 0, (latency,) * 100, 1.0, 1.0, 1000.0, 0, 1, 0.0)
    return Row(kind=kind, workers=workers, seconds=1.0, price=1.0, account=account)


def test_a_missed_target_is_a_failure() -> None:
    """``make bench`` must show it."""
    first = [row(kind, 10, 2.0, 1000) for kind in KINDS]
    assert met([*first, row("bursty", 100, 2.0, 995)])
    assert not met([*first, row("bursty", 100, 2.1, 1000)])
    assert not met([*first, row("bursty", 100, 2.0, 980)])


def test_the_command_prints_cost_latency_and_growth() -> None:
    """As a user runs it, small."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.capacity", "--quick", "--price", "2"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode in (0, 1), done.stderr
    for said in ("2.0 USD an hour", "USD/1000", "p99", "10 times the work:  cost x", "target from 10"):
        assert said in done.stdout
    assert done.returncode == (1 if "MISSED" in done.stdout else 0)
