"""(c) What HTTP, JSON, base64 and image files cost around a model of known speed.

A server process of ours (real application, real mux, real codecs) around a fake one-step pipeline of
20 + 2·n ms for n rows, at most 8 together; a second process with closed-loop clients. Each request
carries a noise picture of 576 x 576 as BMP (1.3 MB of base64) and gets a PNG of the same size back:
what image codecs cost is another benchmark's question (``image_path``).

Run: ``python -m benchmarks.http_load``. Exits 1 when a target is missed.
"""

import argparse
import base64
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import numpy as np
from PIL import Image as Pillow

from benchmarks.http_server import BATCH, ROW_SECONDS, SIDE, STEP_SECONDS

LIMIT = BATCH / (STEP_SECONDS + BATCH * ROW_SECONDS)  # requests/s of the pipeline alone
CPU_TARGET_MS = 2.0


@dataclass(frozen=True)
class Target:
    clients: int
    median_ms: float | None = None
    rate: float | None = None


TARGETS = (
    Target(1, median_ms=27),
    Target(4, rate=95),
    Target(16, rate=211),
    Target(64, rate=211),
)


def picture() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    out = io.BytesIO()
    Pillow.fromarray(noise).save(out, "BMP")  # of all real files the cheapest to read
    return out.getvalue()


def codec_seconds(port: int) -> tuple[float, float]:
    """CPU of the server's codec calls so far, and of the base64 in one request's."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
        counts = json.load(answer)["jobs"]
    return counts["codec_us"] / 1e6, counts["base64_us"] / 1e6


def cpu_seconds(pid: int) -> float:
    """User and system time of a process. Source: proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server() -> Iterator[tuple[int, int]]:
    """Port and process id of a server that listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.http_server", "--port", str(port)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"listening\n", "the server did not start"
        yield port, process.pid
    finally:
        process.terminate()
        process.communicate(timeout=20)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=5, help="of measurement for each row")
    options = arguments.parse_args()

    data = picture()
    body = json.dumps(
        {
            "input": {
                "prompt": "make it pop",
                "image_base64": base64.b64encode(data).decode(),
                "seed": 7,
                "width": SIDE,
                "height": SIDE,
            }
        }
    ).encode()
    print(f"{os.cpu_count()} cores, load before the run {os.getloadavg()[0]:.1f}")
    print(f"request {len(body) / 1e6:.2f} MB; the pipeline alone does {LIMIT:.0f} requests/s")
    print()
    print("CPU-ms a request: the server's; of it reading and writing images; the rest; of that base64")
    print("clients  batch  requests/s  median ms  p95 ms  server  images  the rest  base64  client  failed")
    missed = []
    with tempfile.TemporaryDirectory() as folder, server() as (port, pid):
        request, sample = Path(folder, "request"), Path(folder, "answer")
        request.write_bytes(body)
        for target in TARGETS:
            cpu_before, (codec_before, _) = cpu_seconds(pid), codec_seconds(port)
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "benchmarks.http_clients", "--port", str(port)),
                    *("--body", str(request), "--sample", str(sample), "--clients", str(target.clients)),
                    *("--warm-up", "1", "--seconds", str(options.seconds)),
                ],
                stdout=subprocess.PIPE,
                check=True,
            )
            run = json.loads(done.stdout)
            all_requests = run["total"]
            rate = run["finished"] / run["seconds"]
            middle = median(run["latencies"]) * 1000
            tail = quantiles(run["latencies"], n=20)[-1] * 1000
            cpu = (cpu_seconds(pid) - cpu_before) / all_requests * 1000
            codec_after, text = codec_seconds(port)
            codec = ((codec_after - codec_before) / all_requests - text) * 1000
            check_answer(sample.read_bytes(), data)
            print(
                f"{target.clients:7}  {run['batch']:5.1f}  {rate:10.1f}  {middle:9.1f}  {tail:6.1f}  "
                f"{cpu:6.2f}  {codec:6.2f}  {cpu - codec:8.2f}  {text * 1000:6.2f}  "
                f"{run['cpu'] / all_requests * 1000:6.2f}  {run['failed']:6}"
            )
            if target.median_ms is not None and middle > target.median_ms:
                missed.append(f"{target.clients} client: median {middle:.1f} ms, target {target.median_ms:g}")
            if target.rate is not None and rate < target.rate:
                missed.append(f"{target.clients} clients: {rate:.1f} requests/s, target {target.rate:g}")
            if cpu - codec > CPU_TARGET_MS:
                missed.append(f"{target.clients} clients: {cpu - codec:.2f} CPU-ms beside the codec")
            if run["failed"]:
                missed.append(f"{target.clients} clients: {run['failed']} failed")
    print()
    print("\n".join(f"MISSED {line}" for line in missed) or "all targets met")
    return 1 if missed else 0


def check_answer(body: bytes, sent: bytes) -> None:
    """The pipeline hands the picture back, so the answer must hold the very pixels that were sent."""
    answer = base64.b64decode(json.loads(body)["image"], validate=True)
    with Pillow.open(io.BytesIO(answer)) as got, Pillow.open(io.BytesIO(sent)) as expected:
        assert got.format == "PNG"
        assert got.tobytes() == expected.tobytes()


if __name__ == "__main__":
    sys.exit(main())
