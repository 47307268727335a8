"""Files that are named one by one: the operator's folder, the hub, its cache, and what is said without any.

The hub's client reads its address once, when it is imported; so one process tries every case, and the tests
look at what it reports.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.options import Lightning, ModelOptions
from pipelines.single_files import Reference, locate
from tests.pipelines.hub_server import HubServer, Repository

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = "a" * 40, "b" * 40
FILE, HALF = "deep/folder/one.safetensors", "two.fp16.safetensors"

SCRIPT = """
import json, sys
from core.errors import CapacityError
from pipelines.beside import find_denoiser
from pipelines.lora_files import LoraNotFound, find
from pipelines.options import ModelOptions, Silent
from pipelines.single_files import locate

class Counted(Silent):
    def __init__(self):
        self.told = []
    def bytes(self, done, total):
        self.told.append((done, total))

for name, text, options in json.load(sys.stdin):
    report, options = Counted(), ModelOptions(**options)
    try:
        path = locate(text, options, report)
        place = str(path).split("/snapshots/")[1]
        print(json.dumps([name, path.read_bytes().decode()[:3], place, report.told]))
    except CapacityError as error:
        said = []
        for ask in (find, find_denoiser):
            try:
                ask(text, options, report)
            except (LoraNotFound, CapacityError) as other:
                said.append((str(other), other.retryable))
        print(json.dumps([name, error.message, error.retryable, said]))
"""

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("not here yet", f"Org/Files/{FILE}", {"local_only": True}),
    ("newest", f"Org/Files/{FILE}", {"token": "secret"}),
    ("pinned", f"Org/Files@v1/{FILE}", {}),
    ("by commit", f"Org/Files@{OLD}/{FILE}", {}),
    ("a name that checkpoints leave out", f"Org/Files/{HALF}", {}),
    ("local", f"Org/Files/{FILE}", {"local_only": True}),
    ("gated", f"Org/Gated/{FILE}", {}),
    ("unknown", f"Org/Nothing/{FILE}", {}),
    ("no such revision", f"Org/Files@v9/{FILE}", {}),
    ("no such file", "Org/Files/none.safetensors", {}),
    ("no name of the hub's", f"no such owner!/name/{FILE}", {}),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    files = {FILE: b"one" * 2**20, HALF: b"two"}
    revisions = {"main": NEW, "v1": OLD}
    with HubServer(
        {"Org/Files": Repository(files, revisions), "Org/Gated": Repository(files, gated=True)}
    ) as server:
        yield server


def ask(cases: list[tuple[str, str, dict[str, Any]]], endpoint: str, home: Path) -> dict[str, list[Any]]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env=clean | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)},
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def answers(hub: HubServer, home: Path) -> dict[str, list[Any]]:
    return ask(CASES, hub.endpoint, home)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("o/n/f.safetensors", Reference("o/n", None, "f.safetensors")),
        ("o/n@v1/a/b/f.safetensors", Reference("o/n", "v1", "a/b/f.safetensors")),
        ("f.safetensors", None),
        ("n/f.safetensors", None),
        ("o/@v1/f.safetensors", None),
        ("builtin:a/b/f.safetensors", None),
        ("/a/b/f.safetensors", None),
        ("~/a/b/f.safetensors", None),
    ],
)
def test_what_names_a_file_of_the_hub(text: str, reference: Reference | None) -> None:
    """Denoisers, Lightning LoRAs and users' LoRAs are named alike, and fetched ahead by the same names."""
    assert Reference.of(text) == reference


def test_the_operators_folder_comes_first(tmp_path: Path) -> None:
    """LORA_DIR: images are baked with files that nobody should fetch again."""
    (tmp_path / "one.safetensors").write_bytes(b"")
    options = ModelOptions(local_only=True, lightning=Lightning(folder=tmp_path))
    for text in ("one.safetensors", f"Org/Files@v1/{FILE}"):
        assert locate(text, options) == tmp_path / "one.safetensors"


def test_a_revision_is_what_is_fetched(answers: dict[str, list[Any]]) -> None:
    """Also of a denoiser: a branch moves, a commit does not."""
    assert answers["newest"][:2] == ["one", f"{NEW}/{FILE}"]
    assert answers["pinned"][:2] == ["one", f"{OLD}/{FILE}"]
    assert answers["by commit"][:2] == ["one", f"{OLD}/{FILE}"]
    assert answers["local"][:2] == ["one", f"{NEW}/{FILE}"]
    assert answers["a name that checkpoints leave out"][:2] == ["two", f"{NEW}/{HALF}"]


def test_bytes_are_told_and_the_token_is_the_hubs_alone(
    answers: dict[str, list[Any]], hub: HubServer
) -> None:
    """A denoiser has gigabytes."""
    told = answers["newest"][2]
    assert told[-1] == [3 * 2**20, 3 * 2**20]
    assert all(done <= total == 3 * 2**20 for done, total in told)
    tokens = {asked.token for asked in hub.asked if asked.path.startswith("/storage")}
    assert tokens == {None}
    assert "Bearer secret" in {asked.token for asked in hub.asked}


@pytest.mark.parametrize(
    ("case", "words", "retryable"),
    [
        ("not here yet", "unset LOCAL_ONLY", True),
        ("gated", "accept its licence on its page at the hub, then set HF_TOKEN", False),
        ("unknown", "the hub knows no Org/Nothing", False),
        ("no such revision", "Org/Files has no revision v9", False),
        ("no such file", "Org/Files has no such file", False),
        ("no name of the hub's", "no such owner!/name has no such file", False),
    ],
)
def test_every_way_to_have_no_file_is_told_to_all_who_ask(
    answers: dict[str, list[Any]], case: str, words: str, retryable: bool
) -> None:
    """As a LoRA it must not stop a model that can do without; as a denoiser it does, and says so."""
    message, waiting_helps, (lora, denoiser) = answers[case]
    assert words in message
    assert "MODEL_" not in message, "that is another file"
    assert waiting_helps == retryable
    assert lora == [message, retryable]
    assert "cannot be had" in denoiser[0]
    assert denoiser[0].endswith("put it into LORA_DIR")
    assert denoiser[1] == retryable


def test_a_hub_that_is_down_does_not_stop_what_is_here(answers: dict[str, list[Any]], home: Path) -> None:
    """A worker must start again during an outage."""
    cases: list[tuple[str, str, dict[str, Any]]]
    cases = [("here", f"Org/Files@v1/{FILE}", {}), ("absent", "Org/Other/none.safetensors", {})]
    down = ask(cases, "http://127.0.0.1:9", home)
    assert down["here"][:2] == ["one", f"{OLD}/{FILE}"]
    assert "check the network" in down["absent"][0]
    assert down["absent"][1], "an outage ends"
