"""A real fleet under Ray Serve on this machine, and callers that ask it many things at once."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.api.serving import Answer, Client

ROOT = Path(__file__).resolve().parent.parent.parent
BATCH, MAX_QUEUE = 4, 40


class Fleet(Client):
    """``process`` is ``benchmarks.ray_server``; one line asked, one line answered."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        super().__init__(port, timeout=180)
        self._process = process

    def _tell(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        assert answer, f"the fleet ended at {line!r}"
        return answer

    def report(self) -> Any:
        return json.loads(self._tell("report"))

    def replicas(self) -> dict[int, Any]:
        """By process id."""
        return {int(pid): told for pid, told in self.report()["replicas"].items()}

    def scale(self, replicas: int) -> None:
        self._tell(f"scale {replicas}")

    def wait(self, replicas: int) -> None:
        assert self._tell(f"wait {replicas}") == "there"

    def until(self, holds: Callable[[Any], bool], seconds: float = 30.0) -> None:
        """Ask for reports, each of which takes its time, until one is as it should be."""
        deadline = time.monotonic() + seconds
        while not holds(told := self.report()):
            assert time.monotonic() < deadline, told

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> Answer:
        return self.request("POST", path, body, {"Content-Type": "application/json"} | (headers or {}))


@contextmanager
def running_fleet(folder: Path, **settings: str) -> Iterator[Fleet]:
    """Two replicas of the pocket checkpoint, one CPU between them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = (folder / "fleet.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.ray_server", "--port", str(port), "--replicas", "2"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=os.environ
        | {
            "DEFAULT_MODEL": "pocket-edit",
            "BATCH_SIZE": str(BATCH),
            "MAX_QUEUE": str(MAX_QUEUE),
            "DATA_DIR": str(folder / "data"),
            "OMP_NUM_THREADS": "1",
        }
        | settings,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        told = process.stdout.readline().strip()
        assert told == "ready", (folder / "fleet.log").read_text()[-4000:]
        yield Fleet(process, port)
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            process.stdout.close()
            log.close()
