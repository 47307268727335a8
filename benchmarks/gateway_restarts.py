"""(n) What callers notice while the workers behind the gateway restart, one killed in the middle of its work.

Two workers that run a real model, the gateway and its callers, all processes of their own. In turn, a
worker is told SIGTERM, one is killed, and one is told SIGTERM again; the other one is healthy all the while.
Each request has an id, a prompt and a seed of its own, by which its answer must be known; how often it was
computed is counted in the workers' logs.

Run: ``python -m benchmarks.gateway_restarts``. Exits 1 when a target is missed.
"""

import argparse
import base64
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from benchmarks.gateway import free_port

CALLERS = 8
GOOD = 0.995
MODEL = "pocket-edit"
TURNS = ((0, signal.SIGTERM), (1, signal.SIGKILL), (0, signal.SIGTERM))
_DONE = re.compile(r"request=(\S+) .*status=200 ")


@dataclass
class Process:
    """``log``: of all its lives. ``exits``: how each of them ended."""

    command: list[str]
    port: int
    log: Path
    environment: dict[str, str]
    exits: list[int] = field(default_factory=list)
    running: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        ports = {"API_HOST": "127.0.0.1", "API_PORT": str(self.port), "LOG_LEVEL": "INFO"}
        with self.log.open("ab") as log:
            self.running = subprocess.Popen(
                self.command, env=os.environ | self.environment | ports, stdout=log, stderr=log
            )
        until_ready(self.port)

    def end(self, by: signal.Signals) -> None:
        assert self.running is not None
        self.running.send_signal(by)
        self.exits.append(self.running.wait(120))

    def kill(self) -> None:
        if self.running is not None:
            self.running.kill()
            self.running.wait()


@dataclass
class Found:
    """By request id: the status, "cut" where the transfer broke off, "wrong" for a 200 of somebody else's."""

    answers: dict[str, int | str] = field(default_factory=dict)

    @property
    def good(self) -> float:
        return sum(each == 200 for each in self.answers.values()) / len(self.answers)


def until_ready(port: int, tries: int = 1200) -> None:
    for _ in range(tries):
        try:
            if ask(port, "GET", "/ready")[0] == 200:
                return
        except OSError:
            pass
        subprocess.run(["sleep", "0.1"], check=True)
    raise RuntimeError("a process did not get ready")


def ask(port: int, method: str, path: str, body: bytes = b"", name: str = "") -> tuple[int, bytes]:
    """Raises ``OSError`` or ``HTTPException`` where the answer broke off."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(
            method, path, body or None, {"Content-Type": "application/json", "X-Request-Id": name}
        )
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def one(port: int, number: int, picture: str) -> tuple[str, int | str]:
    name = f"restarts-{number}"
    wishes = {"prompt": name, "image_base64": picture, "seed": number, "width": 64, "height": 64}
    body = json.dumps({"input": wishes | {"num_inference_steps": 2}}).encode()
    try:
        status, content = ask(port, "POST", "/run", body, name)
    except (OSError, http.client.HTTPException):
        return name, "cut"
    if status != 200:
        return name, status
    answer = json.loads(content)
    Image.open(io.BytesIO(base64.b64decode(answer["image"]))).load()
    return name, 200 if (answer["prompt"], answer["seed"]) == (name, number) else "wrong"


@contextmanager
def started(folder: Path) -> Iterator[tuple[list[Process], Process]]:
    serve = {"STANDALONE_MODE": "1", "DEFAULT_MODEL": MODEL, "OMP_NUM_THREADS": "1"}
    workers = [
        Process(
            [sys.executable, "handler.py"],
            free_port(),
            folder / f"worker{number}",
            serve | {"DATA_DIR": str(folder / f"data{number}")},
        )
        for number in range(2)
    ]
    servers = ",".join(f"http://127.0.0.1:{worker.port}" for worker in workers)
    gateway = Process(
        [sys.executable, "-m", "gateway"],
        free_port(),
        folder / "gateway",
        {"TEXT2IMAGE_SERVER_URL": servers, "DATA_DIR": str(folder)},
    )
    with ExitStack() as stack:
        for process in (*workers, gateway):
            stack.callback(process.kill)
            process.start()
        yield workers, gateway


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--requests", type=int, default=1500, help="at least")
    options = arguments.parse_args()
    pixels = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 120, 40)).save(pixels, "PNG")
    picture = base64.b64encode(pixels.getvalue()).decode()
    found, lock, over = Found(), threading.Lock(), threading.Event()
    with tempfile.TemporaryDirectory() as name, started(Path(name)) as (workers, gateway):

        def caller() -> None:
            while not over.is_set() or len(found.answers) < options.requests:
                with lock:
                    number = len(found.answers)
                    found.answers[f"restarts-{number}"] = "lost"
                request, how = one(gateway.port, number, picture)
                found.answers[request] = how

        with ThreadPoolExecutor(CALLERS) as pool:
            calling = [pool.submit(caller) for _ in range(CALLERS)]
            try:
                for place, by in TURNS:
                    subprocess.run(["sleep", "2"], check=True)
                    workers[place].end(by)
                    workers[place].start()
            finally:
                over.set()
            for each in calling:
                each.result()
        for process in (gateway, *workers):
            process.end(signal.SIGTERM)
        computed = Counter(request for worker in workers for request in _DONE.findall(worker.log.read_text()))
        exits = [worker.exits for worker in workers], gateway.exits
    twice = sum(times > 1 for times in computed.values())
    unheard = sum(how == 200 and not computed[request] for request, how in found.answers.items())
    print(f"{len(found.answers)} requests of {CALLERS} callers, {found.good:.2%} answered 200")
    print(f"answers: {dict(Counter(found.answers.values()))}")
    print(f"computed twice: {twice}; 200s that no worker computed: {unheard}")
    print(f"exits of the workers and the gateway: {exits}")
    spoilt = sum(how in ("lost", "wrong", "cut") for how in found.answers.values())
    whole = exits == ([[0, 0, 0], [-signal.SIGKILL, 0]], [0])
    met = found.good >= GOOD and not (spoilt or twice or unheard) and whole
    print("all targets met" if met else "MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
