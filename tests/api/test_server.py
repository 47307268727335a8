"""A server's beginning and end, as its process lives them."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue

import pytest

from tests.api.serving import Answer, Client, png, text

WISHES = {"prompt": "p", "image_base64": text(png()), "width": 64, "height": 64}


class Process:
    """One server process; jobs run until ``finish_job``."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.api.served_process", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.client = Client(int(self.read()))

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start_job(self) -> "Queue[Answer]":
        """Posts a request and returns once the server has accepted it."""
        answers: Queue[Answer] = Queue()
        threading.Thread(target=lambda: answers.put(self.client.run(WISHES)), daemon=True).start()
        assert self.read() == "accepted"
        return answers

    def finish_job(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def wait_until_draining(self) -> Answer:
        deadline = time.monotonic() + 20
        while (ready := self.client.get("/ready")).status == 200:
            assert time.monotonic() < deadline
        return ready


@contextmanager
def process(*arguments: str) -> Iterator[Process]:
    running = Process(*arguments)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


def test_an_idle_server_leaves_at_once_and_in_peace() -> None:
    """Platforms wait for status 0; a shell's 143 would look like a crash."""
    with process() as running:
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(20) == 0  # the drain has 30


def test_a_signal_drains_while_probes_and_refusals_are_answered() -> None:
    """Readiness goes first, new work is sent on, accepted work finishes, then the process ends with 0."""
    with process() as running:
        answers = running.start_job()
        running.process.send_signal(signal.SIGTERM)
        ready = running.wait_until_draining()
        assert (ready.status, ready.json()["status"]) == (503, "draining")
        refused = running.client.run(WISHES)
        assert (refused.status, refused.json()["code"]) == (503, "shutting_down")
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert running.client.get("/live").status == 200
        running.finish_job()
        assert answers.get(timeout=20).status == 200
        assert running.process.wait(20) == 0


def test_an_answer_still_being_written_is_waited_for() -> None:
    """A large one to a slow reader takes its time; cut off, it would be a 200 that nobody can read."""
    with process("--large") as running, socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.settimeout(20)
        reader.connect(("127.0.0.1", running.client.port))
        body = json.dumps({"input": WISHES | {"width": 2048, "height": 2048}}).encode()
        reader.sendall(b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert running.read() == "accepted"
        running.finish_job()
        received = reader.recv(4096)
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(2)  # ten times as long as answers get beyond the drain
        while part := reader.recv(2**20):
            received += part
        assert running.process.wait(20) == 0
    head, _, rest = received.partition(b"\r\n\r\n")
    assert f"content-length: {len(rest)}".encode() in head
    assert len(rest) > 12_000_000


def test_an_answer_that_waits_to_be_encoded_is_waited_for() -> None:
    """The job itself has ended, so the drain is over, but its caller has nothing yet."""
    with process("--busy") as running:
        answers = running.start_job()
        running.finish_job()
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(2)
        running.finish_job()  # a second line: the codec's thread is free again
        assert answers.get(timeout=20).status == 200
        assert running.process.wait(20) == 0


def test_a_drain_begins_although_the_loops_own_threads_are_busy() -> None:
    """Whoever fills those must not be able to stop a server from stopping."""
    with process("--crowded") as running:
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(20) == 0


def test_what_outlasts_the_drain_is_told_so() -> None:
    """An answer, not a cut connection; and still status 0."""
    with process("--drain", "0.2") as running:
        answers = running.start_job()
        running.process.send_signal(signal.SIGINT)
        late = answers.get(timeout=20)
        assert (late.status, late.json()["code"]) == (503, "shutting_down")
        assert running.process.wait(20) == 0


def test_a_second_signal_ends_at_once() -> None:
    """Whoever sends it has waited long enough; callers are still told."""
    with process("--drain", "60") as running:
        answers = running.start_job()
        running.process.send_signal(signal.SIGTERM)
        running.wait_until_draining()
        running.process.send_signal(signal.SIGTERM)
        assert answers.get(timeout=20).json()["code"] == "shutting_down"
        assert running.process.wait(20) == 0


def test_a_second_signal_ends_even_a_drain_that_hangs() -> None:
    """The device thread may be what hangs; the status says that this was no clean end."""
    with process("--stuck") as running:
        running.process.send_signal(signal.SIGTERM)
        running.wait_until_draining()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(20) == 1


def test_probes_are_answered_while_the_model_loads() -> None:
    """With torch importing in a thread beside it: most of the import is still to come when the first
    probe is answered, and others are before it is over. A benchmark measures how fast."""
    with process("--import", "torch") as running:
        assert running.client.get("/ping").status == 204
        probes = 0
        while running.client.get("/health").json()["status"] == "loading":
            probes += 1
        assert probes >= 5


@pytest.mark.parametrize("module", ["api.server", "api.intake", "api.flat"])
def test_importing_the_edge_loads_neither_a_framework_nor_a_server(module: str) -> None:
    """The worker loop uses these without serving HTTP; every 100 ms of import is a slower cold start."""
    heavy = ["torch", "fastapi", "starlette", "uvicorn", "aiohttp", "runpod"]
    script = f"import json, sys, {module}; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
