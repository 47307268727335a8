"""What a person sees while it goes on, and how it ends when they stop it."""

import base64
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from command import files
from command.display import Display, bar, shown
from command.failure import FAILED, LATER, Failure
from command.server import Server
from tests.api.remote import Remote, remote_server
from tests.api.serving import serving

ROOT = Path(__file__).resolve().parent.parent.parent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def remote() -> Iterator[Remote]:
    with remote_server() as running:
        yield running


def test_a_terminal_gets_one_line_that_is_cleared() -> None:
    """The shell's prompt comes back to a clean line."""
    with contextlib.redirect_stderr(Terminal()) as screen, shown() as display:
        display.stage("loading")
        display.steps(2, 4)
    assert "loading" in screen.getvalue()
    assert "[############------------] step 2 of 4" in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[K")
    assert "\n" not in screen.getvalue()


def test_a_log_gets_each_stage_once() -> None:
    """Nobody wants a line for every tenth of a second in it."""
    with contextlib.redirect_stderr(io.StringIO()) as log, shown() as display:
        for step in (0, 0, 1, 2):
            if step:
                display.steps(step, 2)
            else:
                display.stage("loading")
    assert log.getvalue() == "loading\ndenoising\n"


@pytest.mark.parametrize(("done", "of", "filled"), [(0, 4, 0), (1, 4, 6), (4, 4, 24), (9, 4, 24), (0, 0, 0)])
def test_the_bar_never_leaves_its_frame(done: int, of: int, filled: int) -> None:
    """Whatever a server says."""
    assert bar(done, of) == "#" * filled + "-" * (24 - filled)


def event(name: str, body: object) -> bytes:
    return f"event: {name}\ndata: ".encode() + json.dumps(body).encode() + b"\n\n"


PROGRESS = event("progress", {"state": "running", "step": 1, "steps": 2, "position": None})
DONE = event("done", {"image": base64.b64encode(bytes(3_000_000)).decode(), "seed": 1})


def told(remote: Remote, *pieces: bytes) -> None:
    """Events in pieces, as a network delivers them."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream; charset=utf-8")
        request.end_headers()
        for piece in pieces:
            request.wfile.write(piece)
            request.wfile.flush()
        request.close_connection = True

    remote.routes["/runsync"] = answer


@pytest.mark.parametrize("size", [7, 60_000, 10_000_000])
def test_events_are_put_together_however_they_are_cut(remote: Remote, size: int) -> None:
    """A picture is one line of megabytes, more than readers of lines take."""
    everything = b": waiting\n\n" + PROGRESS + (DONE if size > 7 else event("done", {"image": "AAAA"}))
    told(remote, *(everything[at : at + size] for at in range(0, len(everything), size)))
    made = Server(remote.url(""), None).picture({}, Display())
    assert made.data == bytes(3_000_000 if size > 7 else 3)
    assert "text/event-stream" in remote.seen[0]["accept"]


@pytest.mark.parametrize(
    ("pieces", "status", "words"),
    [
        ((PROGRESS,), LATER, "closed the connection before the picture was done"),
        ((PROGRESS, event("error", {"status": 500, "error": "it broke"})), FAILED, "it broke"),
        ((PROGRESS, event("error", {"status": 503, "error": "going down"})), LATER, "going down"),
    ],
)
def test_a_failure_after_the_first_step(
    remote: Remote, pieces: tuple[bytes, ...], status: int, words: str
) -> None:
    """By then there is no status line to say so."""
    told(remote, *pieces)
    with pytest.raises(Failure, match=words) as caught:
        Server(remote.url(""), None).picture({}, Display())
    assert caught.value.status == status


def test_stopping_the_command_stops_the_job(tmp_path: Path) -> None:
    """Nothing computes for a person who pressed Ctrl-C, and no half picture is left."""
    with serving() as served:
        served.painter.shut()
        command = subprocess.Popen(
            [
                *(sys.executable, str(ROOT / "handler.py"), "generate", "a fox", "--model", "dreamer"),
                *("--url", f"127.0.0.1:{served.client.port}", "-o", "fox.png"),
            ],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if name != "API_KEY"},
            stderr=subprocess.PIPE,
        )
        try:
            job = served.painter.entered.get(timeout=30)
            command.send_signal(signal.SIGINT)
            _, log = command.communicate(timeout=10)
            assert served.painter.cancelled.get(timeout=5) == job.id
        finally:
            command.kill()
    assert command.returncode == 130, log
    assert log.splitlines()[-1] == b"stopped"
    assert b"Traceback" not in log
    assert list(tmp_path.iterdir()) == []


def test_a_link_keeps_pointing_where_it_did(tmp_path: Path) -> None:
    """The picture goes where the link leads."""
    target, link = tmp_path / "target.png", tmp_path / "link.png"
    target.write_bytes(b"old")
    link.symlink_to(target)
    assert files.save(b"new", str(link), "x", "png") == str(link)
    assert (link.is_symlink(), target.read_bytes()) == (True, b"new")


@pytest.mark.parametrize(
    ("prompt", "pictures", "stem"),
    [
        ("A fox, at night!", (), "a-fox-at-night"),
        ("", (), "picture"),
        ("狐", (), "picture"),
        ("../../etc/passwd", (), "etc-passwd"),
        ("x" * 500, (), "x" * 60),
        ("night", ("some/where/in.png",), "in-edited"),
        ("make it night", ("-",), "make-it-night"),
        ("make it night", ("https://example.com/in.png",), "make-it-night"),
    ],
)
def test_a_name_of_our_own_is_a_harmless_one(prompt: str, pictures: tuple[str, ...], stem: str) -> None:
    """It is always in the folder where the command was typed."""
    assert files.stem_of(prompt, pictures) == stem
