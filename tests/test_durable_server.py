"""The program as it serves, ended in the two ways a platform has: what it acknowledged is still done."""

import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import requests

from tests.serverless.edits import job

ROOT = Path(__file__).resolve().parent.parent
PAINTING = ("-m", "tests.serverless.worker_process")  # seconds of a step follow
ENDED = {"COMPLETED", "FAILED", "TIMED_OUT", "CANCELLED"}


class Server:
    """``handler.py`` in standalone mode."""

    def __init__(self, folder: Path, *command: str, **more: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        own = {
            "STANDALONE_MODE": "1",
            "API_HOST": "127.0.0.1",
            "API_PORT": str(port),
            "DEFAULT_MODEL": "pocket-edit",
            "DATA_DIR": str(folder / "data"),
            "CACHE_DIR": str(folder / "cache"),
            "BATCH_SIZE": "2",
            "OMP_NUM_THREADS": "1",
        }
        self.base = f"http://127.0.0.1:{port}/v2/x"
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | own | more,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        retry = requests.adapters.Retry(total=150, connect=150, backoff_factor=0.05, backoff_max=0.2)
        self.session = requests.Session()
        self.session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retry))

    def run(self, number: int) -> str:
        asked = {"input": job("a", f"job {number}", width=80, height=64, num_inference_steps=4)["input"]}
        answer = self.session.post(f"{self.base}/run", json=asked, timeout=20)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def ended(self, id: str) -> Any:
        told = self.session.get(f"{self.base}/status-sync/{id}", params={"wait": 60_000}, timeout=70).json()
        assert told["status"] in ENDED, told
        return told

    def end(self, sent: signal.Signals) -> str:
        self.process.send_signal(sent)
        _, log = self.process.communicate(timeout=40)
        return log


@contextmanager
def server(folder: Path, *command: str, **more: str) -> Iterator[Server]:
    running = Server(folder, *command, **more)
    try:
        yield running
    finally:
        running.session.close()
        running.process.kill()
        running.process.communicate(timeout=20)


def test_a_killed_server_does_what_it_acknowledged(tmp_path: Path, record_property: Any) -> None:
    """With the real pocket model: no job is lost, whatever the instant; each has its own picture."""
    with server(tmp_path, "handler.py") as first:
        ids = [first.run(number) for number in range(6)]
        assert first.ended(ids[0])["status"] == "COMPLETED"
        first.end(signal.SIGKILL)
    began = time.monotonic()
    with server(tmp_path, "handler.py") as second:
        second.session.get(f"{second.base}/health", timeout=20)
        listening = time.monotonic() - began
        pending = [
            id
            for id in ids
            if second.session.get(f"{second.base}/status/{id}", timeout=20).json()["status"] != "COMPLETED"
        ]
        told = {id: second.ended(id) for id in pending[:1]}
        seconds = time.monotonic() - began
        record_property("seconds to the first job", seconds)
        record_property("seconds until it listens", listening)
        assert pending, "all was done before the end came"
        assert seconds < 60
        told |= {id: second.ended(id) for id in ids}
        assert {each["status"] for each in told.values()} == {"COMPLETED"}
        prompts = [told[id]["output"]["prompt"] for id in ids]
        assert prompts == [f"job {number}" for number in range(6)]
        second.end(signal.SIGTERM)
        assert second.process.returncode == 0


def test_a_stopped_server_leaves_queued_jobs_queued(tmp_path: Path) -> None:
    """What runs is finished and kept; the rest waits for the next process; the exit is clean."""
    with server(tmp_path, *PAINTING, "0.05") as first:
        ids = [first.run(number) for number in range(24)]
        log = first.end(signal.SIGTERM)
        assert first.process.returncode == 0, log
        assert "Traceback" not in log, log
    with server(tmp_path, *PAINTING, "0.001") as second:
        counts = second.session.get(f"{second.base}/health", timeout=20).json()["jobs"]
        assert counts["completed"] + counts["inQueue"] + counts["inProgress"] == len(ids), counts
        assert counts["failed"] == 0
        assert {second.ended(id)["status"] for id in ids} == {"COMPLETED"}
        again = second.session.get(f"{second.base}/health", timeout=20).json()["jobs"]
        assert again["completed"] == len(ids)
        assert counts["completed"] < len(ids), "nothing was left for the next process"


class Collector(http.server.BaseHTTPRequestHandler):
    """What the spans of a server are sent to; ``received`` is all of it."""

    received: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


def test_a_job_is_counted_and_traced_as_a_request_is(tmp_path: Path) -> None:
    """Else a server of queued work alone would look idle, and its failures would alarm nobody."""
    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{collector.server_port}"
            with server(tmp_path, *PAINTING, "0.001", OTEL_EXPORTER_OTLP_ENDPOINT=address) as running:
                assert running.ended(running.run(0))["status"] == "COMPLETED"
                metrics = running.session.get(
                    running.base.removesuffix("/v2/x") + "/metrics", timeout=20
                ).text
                running.end(signal.SIGTERM)
        finally:
            collector.shutdown()
            thread.join(10)
    (counted,) = re.findall(
        r'^image_generations_total\{.*status="completed".*\} (\S+)$', metrics, re.MULTILINE
    )
    assert float(counted) == 1
    assert b"generate " in b"".join(Collector.received)


def test_a_folder_nobody_can_write_is_told_and_survived(tmp_path: Path) -> None:
    """Synchronous serving needs no disk; the log names the variable."""
    (tmp_path / "data").write_text("in the way")
    with server(tmp_path, *PAINTING, "0.001") as running:
        answer = running.session.post(f"{running.base}/run", json={"input": {}}, timeout=20)
        assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
        asked = {"input": job("a")["input"]}
        url = running.base.removesuffix("/v2/x") + "/runsync"
        assert running.session.post(url, json=asked, timeout=20).status_code == 200
        log = running.end(signal.SIGTERM)
        assert running.process.returncode == 0
        assert "DATA_DIR" in log
