"""Checkpoints of the hub, as a load finds them: against a hub on the loopback, in a process of its own.

The hub's client reads its address once, when it is imported; so one process tries every case, and the tests
look at what it reports.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.hub_server import HubServer, Repository

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = "a" * 40, "b" * 40

SCRIPT = """
import json, logging, sys
from dataclasses import replace
from core.errors import CapacityError
from pipelines.checkpoint import find
from pipelines.options import ModelOptions, Silent
from pipelines.registry import catalog

logging.basicConfig(level="INFO", filename=sys.argv[1])
row = catalog("qwen-image-edit-2509").default

class Counted(Silent):
    told = None
    def bytes(self, done, total):
        self.told = self.told or []
        self.told.append((done, total))

for name, source, options in json.load(sys.stdin):
    report = Counted()
    try:
        found = find(replace(row, source=source), ModelOptions(**options), report)
        print(json.dumps([name, found.folder.name, sorted(found.parts), report.told]))
    except CapacityError as error:
        print(json.dumps([name, error.message, error.retryable, None]))
"""

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("not here yet", "Org/Model", {"local_only": True}),
    ("newest", "Org/Model", {}),
    ("again", "Org/Model", {}),
    ("pinned in the row", f"Org/Model@{OLD}", {}),
    ("pinned by the operator", f"Org/Model@{OLD}", {"revision": "v2"}),
    ("local", "Org/Model", {"local_only": True}),
    ("gated", "Org/Gated", {}),
    ("unknown", "Org/Nothing", {}),
    ("no such revision", "Org/Model@v9", {}),
    ("broken", "Org/Broken", {}),
]


@pytest.fixture(scope="module")
def files(checkpoint: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(checkpoint)): path.read_bytes()
        for path in checkpoint.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub(files: dict[str, bytes]) -> Iterator[HubServer]:
    revisions = {"main": NEW, "v2": NEW, "v1": OLD}
    weights = "transformer/diffusion_pytorch_model.safetensors"
    repositories = {
        "Org/Model": Repository(files, revisions),
        "Org/Gated": Repository(files, gated=True),
        "Org/Broken": Repository(files | {weights: files[weights][:-100]}),
    }
    with HubServer(repositories) as server:
        yield server


def ask(cases: list[tuple[str, str, dict[str, Any]]], endpoint: str, home: Path) -> dict[str, list[Any]]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(home / "log")],
        cwd=ROOT,
        env=clean | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)},
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: rest for name, *rest in answers}


@pytest.fixture(scope="module")
def answers(hub: HubServer, home: Path) -> dict[str, list[Any]]:
    return ask(CASES, hub.endpoint, home)


PARTS = ["text_encoder", "transformer", "vae"]


def test_a_revision_is_what_is_loaded(answers: dict[str, list[Any]], home: Path) -> None:
    """The operator's comes before the row's, the row's before the newest; the log names the commit."""
    assert answers["newest"][:2] == [NEW, PARTS]
    assert answers["pinned in the row"][:2] == [OLD, PARTS]
    assert answers["pinned by the operator"][:2] == [NEW, PARTS]
    assert f"Org/Model at commit {OLD}" in (home / "log").read_text()


def test_bytes_are_told_while_they_are_fetched(
    answers: dict[str, list[Any]], files: dict[str, bytes]
) -> None:
    """From what was here to all of it, and never beyond."""
    told = answers["newest"][2]
    total = sum(len(data) for name, data in files.items())
    assert {total for _, total in told} == {total}
    assert (told[0][0], told[-1][0], max(done for done, _ in told)) == (0, total, total)
    assert len(told) > 3
    assert answers["again"][2][0] == [total, total], "all of it was here"


def test_local_only_takes_what_is_here_and_asks_nobody(answers: dict[str, list[Any]]) -> None:
    """And says what is missing where it is not."""
    assert answers["local"][:2] == [NEW, PARTS]
    message, retryable, _ = answers["not here yet"]
    assert "unset LOCAL_ONLY" in message
    assert retryable


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("gated", "accept its licence on its page at the hub, then set HF_TOKEN"),
        ("unknown", "the hub knows no Org/Nothing"),
        ("no such revision", "Org/Model has no revision v9; check MODEL_REVISION"),
        ("broken", "transformer/diffusion_pytorch_model.safetensors has "),
    ],
)
def test_a_refusal_is_a_sentence_and_waiting_does_not_help(
    answers: dict[str, list[Any]], case: str, words: str
) -> None:
    """Each of these needs a person."""
    message, retryable, _ = answers[case]
    assert words in message
    assert not retryable


def test_a_hub_that_is_down_does_not_stop_what_is_here(answers: dict[str, list[Any]], home: Path) -> None:
    """A worker must start again during an outage, if it has its weights; a half of them is no weights."""
    cases: list[tuple[str, str, dict[str, Any]]]
    cases = [("here", "Org/Model", {}), ("pinned", f"Org/Model@{OLD}", {}), ("absent", "Org/Other", {})]
    down = ask(cases, "http://127.0.0.1:9", home)
    assert [down[case][:2] for case in ("here", "pinned")] == [[NEW, PARTS], [OLD, PARTS]]
    assert "check the network" in down["absent"][0]
    assert down["absent"][1], "an outage ends"
    half = home / "half"
    shutil.copytree(home / "hub", half / "hub", symlinks=True)
    (half / "hub/models--Org--Model/snapshots" / NEW / "vae/config.json").unlink()
    cases = [("half", "Org/Model", {"local_only": True})]
    assert "not whole" in ask(cases, "http://127.0.0.1:9", half)["half"][0]
