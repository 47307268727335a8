"""``deploy/multi_gpu.sh`` keeps one worker for each device, run as an operator runs it, on the CPU."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import settings

ROOT = Path(__file__).resolve().parent.parent.parent
STRANGER = {variable for variable, _, _ in settings.describe()}


@dataclass(frozen=True)
class Script:
    process: subprocess.Popen[bytes]
    first: int
    folder: Path

    def wait_until_alive(self, number: int) -> None:
        """Worker ``number`` answers its probe. Raises ``CalledProcessError`` after 60 s."""
        url = f"http://127.0.0.1:{self.first + number}/live"
        retry = ["--retry", "60", "--retry-delay", "1", "--retry-all-errors"]
        subprocess.run(["curl", "-sf", *retry, url], check=True, capture_output=True, timeout=90)

    def worker(self, number: int) -> int:
        """The process that listens there: the one with that DATA_DIR in its environment."""
        mine = f"DATA_DIR={self.folder}/{self.first + number}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                named = (process / "cmdline").read_bytes().split(b"\0")
                environment = (process / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # ended, or somebody else's
            if b"handler.py" in named and mine in environment:
                return int(process.name)
        raise LookupError(f"no worker {number}")

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def two_free_ports() -> int:
    """The first of two neighbours."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            first: int = one.getsockname()[1]
            try:
                other.bind(("127.0.0.1", first + 1))
            except (OSError, OverflowError):
                continue
            return first


def started(folder: Path, **variables: str) -> Script:
    first = two_free_ports()
    environment = {key: value for key, value in os.environ.items() if key not in STRANGER}
    environment |= {"DEFAULT_MODEL": "pocket-sdxl", "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    environment |= {"GPUS": "cpu cpu", "FIRST_PORT": str(first), "DATA_ROOT": str(folder)} | variables
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([ROOT / "deploy/multi_gpu.sh"], env=environment, stdout=log, stderr=log)
    return Script(process, first, folder)


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    script = started(tmp_path)
    try:
        yield script
    finally:
        script.end()


def test_each_device_has_its_worker_which_comes_back_and_leaves_when_told(script: Script) -> None:
    """A worker whose device fails ends on purpose, so that somebody starts it again."""
    script.wait_until_alive(0)
    script.wait_until_alive(1)
    killed = script.worker(0)
    os.kill(killed, signal.SIGKILL)
    while Path(f"/proc/{killed}").exists():
        os.sched_yield()
    script.wait_until_alive(0)
    workers = {script.worker(0), script.worker(1)}
    assert killed not in workers
    assert len(workers) == 2
    assert script.end() == 0
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert b"ended with 137; starting it again" in (script.folder / "log").read_bytes()


def test_a_worker_that_cannot_read_its_settings_is_not_started_again(tmp_path: Path) -> None:
    """It would fail for ever."""
    began = time.monotonic()
    script = started(tmp_path, BATCH_SIZE="many")
    assert script.process.wait(timeout=60) == 2
    assert time.monotonic() - began < 60
    said = (tmp_path / "log").read_text()
    assert said.count("BATCH_SIZE") == 2, "once for each device"
