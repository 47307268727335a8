"""What a fleet costs and how long its callers wait, from 1 to 1,000 workers at proportional load.

``python -m benchmarks.capacity [--quick] [--plot]``

The real scheduler in each worker, the real balancer before them, virtual time (``virtual_fleet``). Traffic is
a day's rise and fall, compressed into the run, or bursts (``fleet_traffic``). Workers die and start cold.

Device: what was measured of pocket-edit at 256² on one CPU thread, in benchmarks/results. A step of one row:
62.1 ms, and a row of 2, 4, 8 costs 0.90, 0.87, 0.85 of that (2026-11-21-cpu-models-and-dialects.md, "A step
in a batch"). An edit of 4 steps costs 0.84 s and one of 20 costs 1.74 s (2026-11-21-cpu.md, (f)), so that
0.62 s are left for all but the steps; half of it is taken to be before them and half after. For another
device, give its figures as arguments.

The price is an assumption, no quotation: give your own. So are the lives and the cold starts of workers;
deaths are far more frequent than real ones, so that short runs see some.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from batching.scheduler import BatchPolicy
from benchmarks.fleet_traffic import KINDS, STEPS, traffic
from benchmarks.virtual_fleet import Account, Faults, VirtualFleet
from core.request import InferenceRequest
from gateway.balancer import Balancer, Policy

SIZES = (1, 3, 10, 30, 100, 300, 1000)
QUICK_SIZES = (1, 3, 10)
PLOT = Path("docs/img/capacity.png")
LONGEST = 3600.0  # simulated seconds of a small fleet
COST_TARGET = 1.05  # of ten workers' cost per image, for every larger fleet
ANSWERED_TARGET = 0.99  # of all that arrive


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """alone: seconds of a step of one row. shares: what a row costs of that in a step of so many rows.
    encoding, decoding: seconds for each picture before and after its steps."""

    alone: float = 0.0621
    shares: tuple[tuple[int, float], ...] = ((1, 1.0), (2, 0.90), (4, 0.87), (8, 0.85))
    encoding: float = 0.31
    decoding: float = 0.31

    def prepare(self, rows: Sequence[InferenceRequest]) -> float:
        return self.encoding * len(rows)

    def step(self, rows: Sequence[InferenceRequest]) -> float:
        return self.alone * len(rows) * self.share(len(rows))

    def decode(self, rows: Sequence[InferenceRequest]) -> float:
        return self.decoding * len(rows)

    def share(self, rows: int) -> float:
        """Between the widths that were measured, along a straight line; beyond them, as the widest."""
        for (narrow, dear), (wide, cheap) in pairwise(self.shares):
            if narrow <= rows <= wide:
                return dear + (cheap - dear) * (rows - narrow) / (wide - narrow)
        return self.shares[-1][1]

    def capacity(self, batch: int) -> float:
        """Requests a second of the mix when every step is a full batch."""
        steps = statistics.fmean(STEPS)
        return 1 / (self.encoding + self.decoding + steps * self.alone * self.share(batch))


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One fleet under one kind of traffic."""

    kind: str
    workers: int
    seconds: float
    price: float  # USD for an hour of a device
    account: Account

    @property
    def device_seconds(self) -> float:
        """Paid for each image, idle time and cold starts included."""
        return self.account.paid / max(self.account.answered, 1)

    @property
    def cost(self) -> float:
        """USD for a thousand images."""
        return 1000 * self.device_seconds * self.price / 3600

    @property
    def utilisation(self) -> float:
        return self.account.busy / self.account.paid

    @property
    def answered(self) -> float:
        return self.account.answered / max(self.account.arrived, 1)

    def percentile(self, percent: int) -> float:
        return statistics.quantiles(self.account.latencies, n=100)[percent - 1]


def measure(
    kind: str,
    workers: int,
    *,
    device: Device,
    load: float,
    price: float,
    requests: int,
    batch: int = 4,
    faults: Faults | None = None,
    seed: int = 0,
    balancer: Balancer | None = None,
) -> Row:
    """``load`` is of what the workers do at full batches; ``requests`` says how long the run is."""
    rate = load * workers * device.capacity(batch)
    seconds = min(requests / rate, LONGEST)
    fleet = VirtualFleet(
        workers,
        balancer or Balancer(Policy()),
        device,
        policy=BatchPolicy(max_batch_size=batch),
        faults=faults,
        seed=seed,
    )
    account = fleet.run(traffic(kind, rate, seconds, seed), seconds)
    return Row(kind=kind, workers=workers, seconds=seconds, price=price, account=account)


def print_row(row: Row) -> None:
    account = row.account
    print(
        f"{row.kind:>8} {row.workers:>7} {row.seconds:>6.0f} {account.arrived:>8} {account.deaths:>6} "
        f"{row.answered:>8.2%} {row.utilisation:>5.0%} {row.device_seconds:>7.2f} {row.cost:>8.4f} "
        f"{row.percentile(50):>6.2f} {row.percentile(95):>6.2f} {row.percentile(99):>6.2f} "
        f"{1e6 * account.pick_seconds / account.picks:>7.0f}",
        flush=True,
    )


def print_growth(rows: Sequence[Row]) -> None:
    """Each figure of a fleet as a multiple of the one before it and of the first."""
    for kind in KINDS:
        mine = [row for row in rows if row.kind == kind]
        first = mine[0]
        for before, row in pairwise(mine):
            print(
                f"{kind:>8} {row.workers / first.workers:>6.0f} times the work:"
                + "".join(
                    f"  {name} x{now / start:.2f} (x{now / step:.2f})"
                    for name, start, step, now in (
                        ("cost", first.cost, before.cost, row.cost),
                        ("p50", first.percentile(50), before.percentile(50), row.percentile(50)),
                        ("p95", first.percentile(95), before.percentile(95), row.percentile(95)),
                        ("p99", first.percentile(99), before.percentile(99), row.percentile(99)),
                    )
                )
            )


def met(rows: Sequence[Row]) -> bool:
    """From ten workers on, growth must make images no dearer and nobody wait longer."""
    good = True
    for kind in KINDS:
        many = [row for row in rows if row.kind == kind and row.workers >= 10]
        for row in many:
            good = good and row.answered >= ANSWERED_TARGET and row.cost <= COST_TARGET * many[0].cost
            good = good and row.percentile(99) <= many[0].percentile(99)
    return good


def plot(rows: Sequence[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for kind, colour in zip(KINDS, ("tab:blue", "tab:orange"), strict=True):
        mine = [row for row in rows if row.kind == kind]
        workers = [row.workers for row in mine]
        axes[0].plot(workers, [row.device_seconds for row in mine], "o-", color=colour, label=kind)
        for percent, line in ((50, "o-"), (95, "^--"), (99, "s:")):
            label = f"{kind}, p{percent}"
            latencies = [row.percentile(percent) for row in mine]
            axes[1].plot(workers, latencies, line, color=colour, label=label)
        axes[2].plot(workers, [100 * row.utilisation for row in mine], "o-", color=colour, label=kind)
    axes[0].set(
        title="paid for an image",
        ylabel="device-seconds",
        ylim=(0, 1.2 * max(row.device_seconds for row in rows)),
    )
    axes[1].set(title="latency", ylabel="s", yscale="log")
    axes[2].set(title="utilisation", ylabel="% of paid time", ylim=(0, 100))
    for axis in axes:
        axis.set(xlabel="workers, load in proportion", xscale="log")
        axis.grid(True, which="both", alpha=0.3)
        axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def pairs(text: str) -> tuple[tuple[int, float], ...]:
    """``1:1,2:0.9``"""
    found = sorted((int(rows), float(share)) for rows, share in (part.split(":") for part in text.split(",")))
    if not found or found[0][0] != 1:
        raise ValueError("the shares begin with those of one row, 1:1")
    return tuple(found)


def main() -> int:
    device, faults = Device(), Faults()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    add = parser.add_argument
    add("--load", type=float, default=0.6, help="mean load, of full batches")
    add("--price", type=float, default=0.05, help="USD for an hour of a device; the default is an assumption")
    add("--batch", type=int, default=4, help="BATCH_SIZE")
    add("--step-seconds", type=float, default=device.alone, help="a step of one row")
    add("--shares", type=pairs, default=device.shares, help="of it for a row of n: 1:1,2:0.9,4:0.87")
    add("--encode-seconds", type=float, default=device.encoding, help="a picture before its steps")
    add("--decode-seconds", type=float, default=device.decoding, help="a picture after its steps")
    add("--lifetime", type=float, default=faults.lifetime, help="seconds until a worker dies; inf is never")
    add("--boot", type=float, default=faults.boot, help="seconds for which it then refuses connections")
    add("--cold", type=float, default=faults.load, help="seconds for which it then loads its model")
    add("--requests", type=int, default=30_000, help="in each run, unless it takes an hour of virtual time")
    add("--seed", type=int, default=0)
    add("--quick", action="store_true", help="small fleets, short runs")
    add("--plot", action="store_true", help=f"write {PLOT}")
    options = parser.parse_args()
    device = Device(
        alone=options.step_seconds,
        shares=options.shares,
        encoding=options.encode_seconds,
        decoding=options.decode_seconds,
    )
    faults = Faults(lifetime=options.lifetime, boot=options.boot, load=options.cold)
    print(
        f"the fleet in virtual time: mean load {options.load:.0%} of full batches of {options.batch}, "
        f"{device.capacity(options.batch):.2f} requests/s a worker; {options.price} USD an hour of a device "
        "(assumed unless --price was given)"
    )
    print(
        " traffic workers    sec requests deaths answered  util  paid s USD/1000    p50    p95    p99 pick us"
    )
    rows = []
    for kind in KINDS:
        for workers in QUICK_SIZES if options.quick else SIZES:
            row = measure(
                kind,
                workers,
                device=device,
                load=options.load,
                price=options.price,
                requests=min(options.requests, 600) if options.quick else options.requests,
                batch=options.batch,
                faults=faults,
                seed=options.seed,
            )
            rows.append(row)
            print_row(row)
    print_growth(rows)
    good = met(rows)
    print(
        f"target from 10 workers on: cost per image at most {COST_TARGET} of theirs, p99 no worse, "
        f"{ANSWERED_TARGET:.0%} answered: {'met' if good else 'MISSED'}"
    )
    if options.plot:
        plot(rows, PLOT)
        print(f"plot: {PLOT}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
