"""Clients that cannot share our environment: ``make clients`` installs them elsewhere and runs these."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.dialect import ApiOptions
from tests.api.serving import Served, serving

HERE = Path(__file__).resolve().parent
PYTHON = HERE.parent.parent / "out/clients/bin/python"

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as running:
        yield running


def run(*command: str | Path) -> None:
    done = subprocess.run(
        [str(part) for part in command], cwd=HERE / "js", capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip().endswith("ok")) == (0, True), done.stdout + done.stderr


def address(served: Served) -> str:
    return f"http://127.0.0.1:{served.client.port}/v1"


@pytest.mark.parametrize("scenario", ["generation", "edit", "url", "stream", "errors", "models"])
def test_openais_client_for_javascript(scenario: str, served: Served) -> None:
    """The same contract, read by other code."""
    run("node", "openai.mjs", address(served), scenario)


@pytest.mark.parametrize("scenario", ["litellm_generation", "litellm_edit", "litellm_refusal"])
def test_litellm(scenario: str, served: Served) -> None:
    """It sends ``image[]`` for a single picture too."""
    run(PYTHON, HERE / "python_clients.py", address(served), scenario)


def test_langchains_wrapper() -> None:
    """Under IMAGES_DEFAULT_RESPONSE_FORMAT=url, which is there for it."""
    with serving(ApiOptions(images_response_format="url")) as served:
        run(PYTHON, HERE / "python_clients.py", address(served), "langchain_wrapper")
