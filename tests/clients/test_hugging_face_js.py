"""Hugging Face's client for JavaScript, run by node, where ``-m clients`` asks for it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.api.serving import png, serving, text

pytestmark = pytest.mark.clients
FOLDER = Path(__file__).parent / "js"


def npm_folder() -> Path:
    """Where the client is installed, by npm if it is not yet."""
    if not (FOLDER / "node_modules/@huggingface/inference").is_dir():
        npm = shutil.which("npm")
        assert npm is not None, "these tests were asked for and there is no npm"
        quiet = ("--no-audit", "--no-fund", "--no-package-lock")
        subprocess.run([npm, "install", *quiet], cwd=FOLDER, check=True, timeout=300)
    return FOLDER


def test_its_calls() -> None:
    """Each of them, with the answers that it accepts and the refusal that it shows."""
    folder = npm_folder()
    with serving() as served:
        told = {
            "BATCHMUX_URL": f"http://127.0.0.1:{served.client.port}",
            "BATCHMUX_PICTURE": text(png(96, 64)),
        }
        ran = subprocess.run(
            ["node", "--test", "hf.test.mjs"],
            cwd=folder,
            env={**os.environ, **told},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "# pass 5" in ran.stdout
