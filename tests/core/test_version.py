"""One version, in two places that cannot read each other."""

import tomllib
from pathlib import Path

from core.version import VERSION

ROOT = Path(__file__).resolve().parents[2]


def test_the_version_told_is_that_of_the_project() -> None:
    """Whoever reports a fault reads it off the server."""
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION
