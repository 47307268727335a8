"""Server processes of the vision benchmarks, and callers that keep their connection."""

import http.client
import itertools
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.vision_asks import Call

ROOT = Path(__file__).resolve().parent.parent
POCKETS = ("pocket-sam3", "pocket-grounding-dino", "pocket-depth", "pocket-dinov3")
OURS = ("handler.py",)
NAIVE = ("-m", "benchmarks.naive_vision")
_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Told:
    """seconds: from the first byte sent to the last received."""

    status: int
    body: bytes
    seconds: float


@dataclass(frozen=True)
class Server:
    port: int
    pid: int

    @property
    def resident(self) -> int:
        """Bytes in memory. Source: proc(5)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    @property
    def cpu_seconds(self) -> float:
        """User and system time. Source: proc(5)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(self, path: str, body: bytes | None = None) -> Told:
        with closing(self.connection()) as connection:
            return _send(connection, path, body)

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def metrics(self) -> dict[str, float]:
        """By name and labels, as Prometheus reads them."""
        lines = re.findall(r"^(\w+(?:\{.*\})?) (\S+)$", self.ask("/metrics").body.decode(), re.MULTILINE)
        return {name: float(value) for name, value in lines}


@contextmanager
def server(folder: Path, command: Sequence[str] = OURS, **variables: str) -> Iterator[Server]:
    """A process of its own with the four pocket models, ready to answer; its log is put into ``folder``."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    default, *others = POCKETS
    own = {
        "STANDALONE_MODE": "1",
        "API_PROFILE": "vision",
        "API_HOST": "127.0.0.1",
        "API_PORT": str(port),
        "DEFAULT_MODEL": default,
        "ALLOWED_MODELS": ",".join(others),
        "MAX_MODELS_CACHE": "4",
        "BATCH_SIZE": "8",
        "DATA_DIR": str(folder / "data"),
        "CACHE_DIR": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=os.environ | own | variables, stdout=log, stderr=log
        )
    try:
        running = Server(port, process.pid)
        _wait(running, process)
        yield running
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _wait(running: Server, process: "subprocess.Popen[bytes]", seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    pause = threading.Event()
    while time.monotonic() < until:
        assert process.poll() is None, "the server ended before it was ready"
        try:
            if running.ask("/ready").status == 200:
                return
        except OSError:
            pass
        pause.wait(0.1)
    raise TimeoutError(f"the server was not ready within {seconds:g} s")


def fire(running: Server, calls: Sequence[Call], clients: int) -> list[Told]:
    """Answers in the order of ``calls``; each client sends its next when it has its answer."""
    numbers, lock = itertools.count(), threading.Lock()
    answers: list[Told | None] = [None] * len(calls)

    def client() -> None:
        with closing(running.connection()) as connection:
            while True:
                with lock:
                    at = next(numbers)
                if at >= len(calls):
                    return
                answers[at] = _send(connection, calls[at].path, calls[at].body)

    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(client) for _ in range(clients)]:
            done.result()
    return [answer for answer in answers if answer is not None]


def _send(connection: http.client.HTTPConnection, path: str, body: bytes | None) -> Told:
    started = time.perf_counter()
    if body is None:
        connection.request("GET", path)
    else:
        connection.request("POST", path, body, _JSON)
    response = connection.getresponse()
    content = response.read()
    return Told(response.status, content, time.perf_counter() - started)
