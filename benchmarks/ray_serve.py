"""What Ray Serve costs and gains: one standalone process, one replica, two replicas, the same requests.

Every server computes with one thread a process, so that two replicas have two cores and the process has
one. Requests are edits of the pocket checkpoint; closed-loop clients in threads of this process. The process
and the fleet take turns, because the machine may have other work: each round compares neighbours in time.

Run: ``make ray-bench``. Exits 1 unless every request is
answered and two replicas do more than one process does.
"""

import argparse
import base64
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles

from PIL import Image as Pillow

ROOT = Path(__file__).resolve().parent.parent
SIDE, STEPS = 128, 2
CLIENTS = 24


@dataclass(frozen=True)
class Server:
    """steps: how many were run so far, and the rows in all of them. scale: to so many replicas."""

    port: int
    steps: Callable[[], tuple[int, int]]
    scale: Callable[[int], None]


@dataclass(frozen=True)
class Round:
    rate: float
    median_ms: float
    p95_ms: float
    rows_a_step: float
    alone_ms: float
    failed: int


def environment(folder: str) -> dict[str, str]:
    return os.environ | {
        **{"DEFAULT_MODEL": "pocket-edit", "BATCH_SIZE": "4", "OMP_NUM_THREADS": "1"},
        **{"STANDALONE_MODE": "1", "DATA_DIR": folder, "LOG_LEVEL": "WARNING", "PNG_METADATA": "0"},
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextmanager
def standalone() -> Iterator[Server]:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "handler.py"], cwd=ROOT, env=environment(folder) | {"API_PORT": str(port)}
        )
        try:
            wait_until_ready(port, process)
            yield Server(port, lambda: steps_of_metrics(port), lambda count: None)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@contextmanager
def fleet() -> Iterator[Server]:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.ray_server", "--port", str(port), "--replicas", "2"],
            cwd=ROOT,
            env=environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None

        def told_of(line: str) -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(line + "\n")
            process.stdin.flush()
            return process.stdout.readline()

        def scale(count: int) -> None:
            told_of(f"scale {count}")
            told_of(f"wait {count}")

        def steps() -> tuple[int, int]:
            told = json.loads(told_of("report"))["replicas"].values()
            sizes = [(int(size), count) for one in told for size, count in one["batch_sizes"].items()]
            return sum(count for _, count in sizes), sum(size * count for size, count in sizes)

        try:
            assert process.stdout.readline().strip() == "ready", (Path(folder) / "log").read_text()[-3000:]
            yield Server(port, steps, scale)
        finally:
            process.stdin.close()
            process.wait(120)


def wait_until_ready(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if ask(port, "GET", "/ready") == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise TimeoutError("the server did not become ready")


def steps_of_metrics(port: int) -> tuple[int, int]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = dict(re.findall(r"^batchmux_step_rows_(count|sum) ([\d.e+]+)$", text, re.MULTILINE))
    return int(float(found["count"])), int(float(found["sum"]))


def ask(port: int, method: str, path: str, body: bytes | None = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def edit(number: int) -> bytes:
    """Of a text and a picture that no other number has, so that no cache knows them."""
    out = io.BytesIO()
    Pillow.new("RGB", (SIDE, SIDE), (number % 256, number // 256 % 256, number // 65536)).save(out, "PNG")
    wishes = {
        **{"prompt": f"make it night {number}", "image": base64.b64encode(out.getvalue()).decode()},
        **{"width": SIDE, "height": SIDE, "num_inference_steps": STEPS, "seed": number},
    }
    return json.dumps({"input": wishes}).encode()


def timed(port: int, number: int) -> tuple[float, int]:
    body = edit(number)
    began = time.perf_counter()
    status = ask(port, "POST", "/run", body)
    return time.perf_counter() - began, status


def measure(server: Server, first: int, requests: int) -> Round:
    """Edits ``first`` to ``first + requests``, from all clients."""
    alone = [timed(server.port, 1_000_000 + first + number)[0] for number in range(10)]
    before = server.steps()
    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(partial(timed, server.port), range(first, first + requests)))
    seconds = time.perf_counter() - began
    after = server.steps()
    latencies = quantiles([taken for taken, _ in answers], n=20)
    return Round(
        rate=requests / seconds,
        median_ms=latencies[9] * 1000,
        p95_ms=latencies[18] * 1000,
        rows_a_step=(after[1] - before[1]) / (after[0] - before[0]),
        alone_ms=median(alone) * 1000,
        failed=sum(status != 200 for _, status in answers),
    )


def shown(name: str, rounds: list[Round], beside: list[Round]) -> str:
    """Medians over the rounds; the ratio is of each round to its neighbour in time."""

    def middle(figure: str) -> float:
        return float(median(getattr(one, figure) for one in rounds))

    return (
        f"| {name} | {middle('rate'):.1f} | {ratio(rounds, beside):.2f} | {middle('median_ms'):.0f} ms "
        f"| {middle('p95_ms'):.0f} ms | {middle('rows_a_step'):.2f} | {middle('alone_ms'):.0f} ms "
        f"| {sum(one.failed for one in rounds)} |"
    )


def ratio(rounds: list[Round], beside: list[Round]) -> float:
    return median(one.rate / other.rate for one, other in zip(rounds, beside, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=96, help="of each server in each round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    alone: dict[int, list[Round]] = {2: [], 1: []}
    fleets: dict[int, list[Round]] = {2: [], 1: []}
    with standalone() as process, fleet() as replicas:
        for count in (2, 1):
            replicas.scale(count)
            for server in (process, replicas):
                # Every replica has worked before it counts.
                measure(server, 500_000 + 1000 * count, 2 * CLIENTS)
            for number in range(options.rounds):
                first = 1000 * (options.rounds * count + number)
                alone[count].append(measure(process, first, options.requests))
                fleets[count].append(measure(replicas, first, options.requests))
    both = alone[2] + alone[1]
    print(
        f"{options.rounds} rounds of {options.requests} edits of {SIDE}² in {STEPS} steps, {CLIENTS} clients"
    )
    print(
        "| server | edits/s | of the process | median | p95 | rows in a step | one client, median | failed |"
    )
    print("|---|---|---|---|---|---|---|---|")
    print(shown("standalone process", both, both))
    print(shown("Ray Serve, 1 replica", fleets[1], alone[1]))
    print(shown("Ray Serve, 2 replicas", fleets[2], alone[2]))
    failed = sum(one.failed for one in both + fleets[1] + fleets[2])
    return 0 if not failed and ratio(fleets[2], alone[2]) > 1 else 1


if __name__ == "__main__":
    sys.exit(main())
