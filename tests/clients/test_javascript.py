"""The JavaScript clients against a real server, each script in a process of its own.

A script is ``js/NAME.test.mjs`` and says what must hold with ``node:test``. It gets the server's address as
its argument and as BATCHMUX_URL, and a PNG of 96x64 in base64 as BATCHMUX_PICTURE. ``make clients`` installs
what the scripts import.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.queueing import queueing
from tests.api.serving import Served, png, text

JS = Path(__file__).resolve().parent / "js"
SCRIPTS = sorted(JS.glob("*.test.mjs"))

pytestmark = pytest.mark.clients


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """With a job store, which RunPod's client needs."""
    with queueing(tmp_path / "data") as queue:
        yield queue.served


def node(script: Path, address: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["node", "--test-reporter=tap", script.name, address],
        cwd=script.parent,
        env=os.environ | {"BATCHMUX_URL": address, "BATCHMUX_PICTURE": text(png())},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def counted(report: str, what: str) -> int:
    """Of a TAP report's last lines, as ``# pass 3``."""
    found = re.findall(rf"^# {what} (\d+)$", report, re.MULTILINE)
    return int(found[-1]) if found else -1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name.partition(".")[0])
def test_a_client_works_unchanged(served: Served, script: Path) -> None:
    """Its authors never heard of this server, so what they check is what their users rely on."""
    done = node(script, f"http://127.0.0.1:{served.client.port}")
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    assert counted(done.stdout, "pass") >= 1, report
    assert [counted(done.stdout, what) for what in ("fail", "cancelled", "skipped", "todo")] == [0] * 4, (
        report
    )


def test_a_script_that_fails_is_noticed(served: Served, tmp_path: Path) -> None:
    """And so is one that asks nothing of the server."""
    failing = tmp_path / "failing.test.mjs"
    failing.write_text('import test from "node:test";\ntest("x", () => { throw new Error("no"); });\n')
    done = node(failing, "http://127.0.0.1:9")
    assert (done.returncode, counted(done.stdout, "fail")) == (1, 1)
    failing.write_text('console.log("nothing");\n')
    assert counted(node(failing, "http://127.0.0.1:9").stdout, "pass") == -1
