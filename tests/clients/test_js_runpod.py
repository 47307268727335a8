"""The ``runpod-sdk`` package of npm against a real server; ``pytest -m clients`` runs it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.api.queueing import PICTURE, queueing

JS = Path(__file__).parent / "js"


@pytest.mark.clients
def test_the_published_package_works_unchanged(tmp_path: Path) -> None:
    """Its checks are in runpod.test.mjs; node's own runner makes them."""
    for name in ("package.json", "runpod.test.mjs"):
        shutil.copy(JS / name, tmp_path)
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=120,
    )
    with queueing(tmp_path / "data") as queue:
        done = subprocess.run(
            ["node", "--test", "runpod.test.mjs"],
            cwd=tmp_path,
            env=os.environ | {"BASE_URL": f"http://127.0.0.1:{queue.served.client.port}", "PICTURE": PICTURE},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# pass 5" in done.stdout or "pass 5" in done.stdout
