"""(g) What each dialect costs over HTTP around a picture that costs nothing, and what telling progress costs.

One caller, one connection to our server and one to a bare FastAPI application that echoes the same body;
each request goes to both in turn, so that whatever else the machine does meets both. The CPU time of reading
and writing images is told apart: it is the subject of ``image_path``. Progress is judged by the steps that a
mux finishes in a second while all its callers read the events of their jobs, against callers who read none.

Run: ``python -m benchmarks.http_overhead``. Exits 1 when a target is missed.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles

import pybase64

from api.stream import events
from batching.mux import BatchMux, BatchPolicy
from benchmarks.http_load import body_of, idle_share, picture
from benchmarks.http_server import BATCH, ROW_SECONDS, STEP_SECONDS, TimedPipeline
from benchmarks.http_server import SPEC as TIMED
from benchmarks.http_server import Row as TimedRow
from core.request import Image, InferenceRequest, Task
from core.service import port as awaitable

OVERHEAD_TARGET_MS = {"small": 2.0, "1.3 MB": 5.0}  # median, beside the codec and the echo
PROGRESS_TARGET = 0.02  # of throughput


@dataclass(frozen=True)
class Row:
    """A dialect's request. ``body`` takes the picture's file, or nothing where a text alone is sent."""

    dialect: str
    path: str
    size: str
    body: Callable[[], bytes]
    media_type: str = "application/json"


def flat_small() -> bytes:
    return json.dumps({"input": {"prompt": "a fox", "seed": 7}}).encode()


def flat_large() -> bytes:
    return body_of(picture())


def asking(**fields: object) -> Callable[[], bytes]:
    return lambda: json.dumps(fields).encode()


def with_picture(**fields: object) -> Callable[[], bytes]:
    """``PICTURE`` stands for the picture in base64."""

    def body() -> bytes:
        return json.dumps(fields).replace("PICTURE", pybase64.b64encode(picture()).decode()).encode()

    return body


def form() -> bytes:
    """As curl writes it."""
    parts = (b'name="prompt"\r\n\r\na fox', b'name="image"; filename="a.png"\r\n\r\n' + picture())
    head = b"--x\r\nContent-Disposition: form-data; "
    return b"".join(head + part + b"\r\n" for part in parts) + b"--x--\r\n"


# One line for each dialect and size.
ROWS = (
    Row("flat", "/runsync", "small", flat_small),
    Row("OpenAI", "/v1/images/generations", "small", asking(prompt="a fox", seed=7)),
    Row("SDXL service", "/v1/generate", "small", asking(prompt="a fox", params={"seed": 7})),
    Row("text to image", "/generate", "small", asking(prompt="a fox", width=256, height=256)),
    Row("Hugging Face", "/hf/text-to-image", "small", asking(inputs="a fox")),
    Row("AUTOMATIC1111", "/sdapi/v1/txt2img", "small", asking(prompt="a fox", width=64, height=64)),
    Row("flat", "/runsync", "1.3 MB", flat_large),
    Row(
        "OpenAI",
        "/v1/images/edits",
        "1.3 MB",
        with_picture(prompt="a fox", image="data:image/png;base64,PICTURE"),
    ),
    Row(
        "Hugging Face",
        "/hf/image-to-image",
        "1.3 MB",
        with_picture(inputs="PICTURE", parameters={"prompt": "a fox"}),
    ),
    Row("form", "/edit", "1.3 MB", form, "multipart/form-data; boundary=x"),
)


class Caller:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._room = memoryview(bytearray(8 * 2**20))

    def seconds(self, row: Row, body: bytes) -> float:
        """Until the whole answer is here. Raises ``ValueError`` when it is no success."""
        head = (
            f"POST {row.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {row.media_type}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        started = time.perf_counter()
        self._socket.sendall(head.encode() + body)
        filled = self._socket.recv_into(self._room)
        while (end := bytes(self._room[: min(filled, 4096)]).find(b"\r\n\r\n")) < 0:
            filled += self._receive(filled)
        answer = bytes(self._room[:end]).lower()
        length = end + 4 + int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while filled < length:
            filled += self._receive(filled)
        took = time.perf_counter() - started
        if not answer.startswith(b"http/1.1 200"):
            raise ValueError(f"{row.path}: {bytes(self._room[:length])[:500]!r}")
        return took

    def _receive(self, filled: int) -> int:
        count = self._socket.recv_into(self._room[filled:])
        if not count:
            raise ValueError("the server closed the connection")
        return count

    def codec_seconds(self) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health") as answer:
            return int(json.load(answer)["jobs"]["codec_us"]) / 1e6

    def close(self) -> None:
        self._socket.close()


@contextmanager
def server(*arguments: str) -> Iterator[Caller]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.overhead_server", "--port", str(port), *arguments],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"listening\n", "the server did not start"
        caller = Caller(port)
        yield caller
        caller.close()
    finally:
        process.terminate()
        process.communicate(timeout=20)


@dataclass(frozen=True)
class Cost:
    """Of one row; milliseconds."""

    row: Row
    ours: Sequence[float]
    echo: Sequence[float]
    codec: float

    @property
    def overhead(self) -> float:
        """Of the median, beside what moving the body and the codec take."""
        return median(self.ours) - median(self.echo) - self.codec

    @property
    def missed(self) -> bool:
        return self.overhead > OVERHEAD_TARGET_MS[self.row.size]

    def __str__(self) -> str:
        ours, echo = quantiles(self.ours, n=100), quantiles(self.echo, n=100)
        return (
            f"{self.row.dialect:<12} {self.row.path:<24} {self.row.size:>7}  "
            f"{ours[49]:8.2f} {ours[98]:8.2f}  {echo[49]:8.2f} {echo[98]:8.2f}  "
            f"{self.codec:6.2f}  {self.overhead:8.2f}"
        )


HEADER = (
    "dialect        path                        body  p50 ours p99 ours  p50 echo p99 echo   codec  overhead"
)


def measure(row: Row, ours: Caller, echo: Caller, count: int) -> Cost:
    body = row.body()
    for caller in (ours, echo) * 5:
        caller.seconds(row, body)
    before = ours.codec_seconds()
    pairs = [(ours.seconds(row, body), echo.seconds(row, body)) for _ in range(count)]
    codec = (ours.codec_seconds() - before) / count
    return Cost(row, [a * 1e3 for a, _ in pairs], [b * 1e3 for _, b in pairs], codec * 1e3)


async def steps_a_second(mux: BatchMux, jobs: int, steps: int, *, told: bool) -> tuple[float, int]:
    """Of ``jobs`` at once; and how many events were read."""
    submit, read = awaitable(mux.submit), 0

    async def one(request: InferenceRequest) -> None:
        nonlocal read
        if not told:
            await submit(request)
            return
        async for _ in events(submit, request, mux.progress):
            read += 1

    started = time.perf_counter()
    await asyncio.gather(*(one(made(f"{told}-{n}", steps)) for n in range(jobs)))
    return jobs * steps / (time.perf_counter() - started), read


def made(id: str, steps: int) -> InferenceRequest:
    blank = Image(pixels=bytes(64 * 64 * 3), width=64, height=64)
    return TIMED.request(
        id=id, task=Task.EDIT, prompt="x", images=(blank,), width=64, height=64, steps=steps, seed=1
    )


class ManySteps(TimedPipeline):
    """As many as were asked for."""

    def prepare(self, requests: Sequence[InferenceRequest]) -> list[TimedRow]:
        rows = super().prepare(requests)
        for row in rows:
            row.remaining = row.request.steps
        return rows


def progress_cost(rounds: int, jobs: int = 2 * BATCH, steps: int = 20) -> tuple[float, float, int]:
    """Median steps/s without and with events, and events of a round. The two alternate."""
    pipeline = ManySteps()
    rates: dict[bool, list[float]] = {False: [], True: []}
    read = 0
    with BatchMux(lambda model: pipeline, BatchPolicy(max_batch_size=BATCH)) as mux:
        for number in range(2 * rounds):
            told = bool(number % 2)
            rate, read = asyncio.run(steps_a_second(mux, jobs, steps, told=told))
            rates[told].append(rate)
    return median(rates[False]), median(rates[True]), read


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--requests", type=int, default=300, help="of each row, to each of the two")
    arguments.add_argument("--rounds", type=int, default=5, help="of the progress measurement, each way")
    options = arguments.parse_args()
    print(f"one caller; others leave {idle_share():.0%} of the machine idle; milliseconds")
    print(HEADER)
    missed = []
    with server() as ours, server("--echo") as echo:
        for row in ROWS:
            cost = measure(row, ours, echo, options.requests)
            print(cost, flush=True)
            if cost.missed:
                missed.append(
                    f"MISSED by {row.dialect} ({row.size}): {cost.overhead:.2f} ms beside codec and echo, "
                    f"target {OVERHEAD_TARGET_MS[row.size]:g}"
                )
    step = STEP_SECONDS + BATCH * ROW_SECONDS
    silent, told, read = progress_cost(options.rounds)
    lost = 1 - told / silent
    print(
        f"progress: steps of {step * 1000:.0f} ms in batches of {BATCH}: {silent:.1f} steps/s "
        f"without events, {told:.1f} with ({read} a round): {lost:+.2%}"
    )
    if lost > PROGRESS_TARGET:
        missed.append(f"MISSED by progress: {lost:.2%} of throughput, target {PROGRESS_TARGET:.0%}")
    print("\n".join(missed) or "all targets met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
