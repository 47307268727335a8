"""What tests of the environment stand on."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def clean_environment(tmp_path: Path) -> Iterator[None]:
    """Each test sees only what it sets, and leaves the process as it was."""
    before, folder = dict(os.environ), Path.cwd()
    os.environ.clear()
    os.environ["HOME"] = str(tmp_path)
    os.chdir(tmp_path)
    yield
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(before)
