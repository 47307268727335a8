"""The facts around the code that nothing else would notice: pins, image, hub files, test input, tables."""

import ast
import base64
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from PIL import Image

import settings
from core.catalog import Catalog

ROOT = Path(__file__).resolve().parent.parent
HADOLINT = Path(sys.executable).with_name("hadolint")
VARIABLES = {variable for variable, _, _ in settings.describe()}
ASKED_FOR = "runpod torch diffusers transformers accelerate bitsandbytes peft pillow requests fastapi uvicorn"


def requirements(name: str) -> dict[str, tuple[Requirement, str]]:
    """Canonical name -> (requirement, the comment beside it)."""
    rows = {}
    for line in (ROOT / name).read_text().splitlines():
        wanted, _, comment = line.partition("#")
        if wanted.strip() and not wanted.startswith("-r "):
            requirement = Requirement(wanted.strip())
            rows[canonical(requirement.name)] = (requirement, comment.strip())
    return rows


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, arguments) with continued lines joined and comments left out."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line.split(None, 1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(word.upper(), rest.strip()) for word, rest in lines]


def image_environment() -> dict[str, str]:
    pairs = [pair for word, rest in dockerfile() if word == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def hub(name: str) -> Any:
    return json.loads((ROOT / ".runpod" / name).read_text())


def catalog() -> Catalog:
    from pipelines.registry import SPECS

    return Catalog(SPECS, default="pocket-edit")


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_is_pinned_explained_and_installed(name: str) -> None:
    """An unpinned line changes what is served without a commit; a stale environment tests something else."""
    for requirement, comment in requirements(name).values():
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators in ({"=="}, {"~="}), requirement
        assert comment, f"{requirement} does not say why it is here"
        installed = metadata.version(requirement.name)
        assert requirement.specifier.contains(installed), f"{requirement}: {installed} is installed"


def test_the_packages_asked_for_are_there_and_torchvision_is_not() -> None:
    """A torchvision beside a CPU torch makes most vision classes of transformers un-importable."""
    named = requirements("requirements.txt") | requirements("requirements-dev.txt")
    assert set(ASKED_FOR.split()) <= set(requirements("requirements.txt"))
    assert "torchvision" not in named
    assert importlib.util.find_spec("torchvision") is None


def imports(*tops: str) -> Iterator[tuple[Path, str]]:
    for top in tops:
        paths = [ROOT / top] if top.endswith(".py") else sorted((ROOT / top).rglob("*.py"))
        for path in paths:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    yield from ((path, alias.name) for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    yield path, node.module


def unnamed(named: set[str], *tops: str) -> list[str]:
    """Imports of installed distributions that no requirement names."""
    distributions = metadata.packages_distributions()
    return [
        f"{path.relative_to(ROOT)}: {module}"
        for path, module in imports(*tops)
        if (owners := {canonical(name) for name in distributions.get(module.split(".")[0], [])})
        and not owners & named
    ]


def test_what_is_imported_is_required_by_name() -> None:
    """A library that only comes along with another one disappears with that one's next release."""
    runtime = set(requirements("requirements.txt"))
    house = ("handler.py", "settings.py", "variables", "core", "batching", "pipelines", "api", "serverless")
    assert unnamed(runtime, *house) == []
    workshop = runtime | set(requirements("requirements-dev.txt")) | {"packaging"}  # of pytest
    assert unnamed(workshop, "tests", "benchmarks", "docs") == []
    assert unnamed(runtime - {"pydantic"}, "settings.py"), "an unnamed import must be seen"


def test_make_bench_runs_every_benchmark() -> None:
    """One that nobody runs measures nothing; one that is only another's part cannot be run alone."""
    named = re.findall(r"^(?:RAY_)?BENCHES := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(named) == 2
    runnable = {p.stem for p in (ROOT / "benchmarks").glob("*.py") if "def main() -> int" in p.read_text()}
    assert set(" ".join(named).split()) == runnable


def test_the_dockerfile_is_linted(tmp_path: Path) -> None:
    """No test builds the image, so its text is what can be checked; and the lint must bite."""
    bad = tmp_path / "Dockerfile"
    bad.write_text((ROOT / "Dockerfile").read_text().replace("--no-cache-dir", "") + "\nRUN cd /\n")
    assert subprocess.run([HADOLINT, ROOT / "Dockerfile"], capture_output=True, timeout=30).returncode == 0
    assert subprocess.run([HADOLINT, bad], capture_output=True, timeout=30).returncode == 1


def test_python_is_process_one_and_gets_the_signals() -> None:
    """Behind a shell, SIGTERM never arrives and every deployment cuts running jobs off."""
    starts = [rest for word, rest in dockerfile() if word in {"CMD", "ENTRYPOINT"}]
    assert [json.loads(rest) for rest in starts] == [["python", "handler.py"]]


def test_caches_lie_on_the_runpod_volume() -> None:
    """58 GB of weights must not be downloaded again by every new worker."""
    environment = image_environment()
    assert environment["HUGGINGFACE_HUB_CACHE"] == "/runpod-volume/huggingface-cache/hub"
    assert environment["HUGGINGFACE_HUB_CACHE"] == environment["HF_HOME"] + "/hub"
    assert environment["RUNPOD_LOG_LEVEL"] == "INFO"


def test_requirements_are_installed_before_the_sources_are_copied() -> None:
    """Otherwise each change of code installs torch again."""
    steps = [f"{word} {rest}" for word, rest in dockerfile()]
    install = next(i for i, step in enumerate(steps) if "pip install" in step)
    assert steps.index("COPY requirements.txt requirements-da3.txt ./") < install < steps.index("COPY . .")


def test_private_and_heavy_files_stay_out_of_the_image() -> None:
    """An image is published; .env holds keys."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".env", ".git", ".venv", "tests", "models", "out"} <= set(ignored)
    needed = {"handler.py", "settings.py", "variables", "requirements.txt", "test_input.json"}
    needed |= {"core", "batching", "pipelines", "api", "serverless"}
    assert not needed & set(ignored)


def health_check(**environment: str) -> int:
    """The exit status of the image's health check under ``environment``."""
    command = json.loads(
        next(rest for word, rest in dockerfile() if word == "HEALTHCHECK").split("CMD", 1)[1]
    )
    env = {key: value for key, value in os.environ.items() if key not in VARIABLES} | environment
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, env=env, capture_output=True, timeout=30)
    return done.returncode


def test_a_queue_worker_is_healthy_without_a_port() -> None:
    """In that mode nothing listens, and a failing check would have the container replaced."""
    assert health_check(STANDALONE_MODE="0") == 0


def test_a_silent_server_is_unhealthy() -> None:
    """Port 1 answers nobody; the check must be able to fail."""
    assert health_check(STANDALONE_MODE="1", API_PORT="1") != 0


def test_hub_settings_exist_and_keep_their_limits() -> None:
    """A misspelt variable would be ignored in silence, and the choice in the console with it."""
    config = hub("hub.json")["config"]
    offered = {row["key"]: row["input"] for row in config["env"]}
    choices = [{key: str(row["default"])} for key, row in offered.items()]
    choices += [
        {key: str(value) for key, value in preset["defaults"].items()} for preset in config["presets"]
    ]
    choices += [{key: option["value"]} for key, row in offered.items() for option in row.get("options", [])]
    choices += [{key: str(row[end])} for key, row in offered.items() for end in ("min", "max") if end in row]
    choices += [{row["key"]: row["value"]} for row in hub("tests.json")["config"]["env"]]
    for choice in choices:
        assert set(choice) <= VARIABLES
        chosen = settings.Settings.model_validate({key.lower(): value for key, value in choice.items()})
        assert catalog().get(chosen.default_model)


def test_hub_defaults_are_the_settings_own() -> None:
    """The console must show what an untouched worker does."""
    defaults = {variable: default for variable, default, _ in settings.describe()}
    for row in hub("hub.json")["config"]["env"]:
        assert str(row["input"]["default"]) == defaults[row["key"]].removesuffix(".0"), row["key"]


def test_hub_metadata_is_what_runpod_documents() -> None:
    """Required fields and values of docs.runpod.io/hub/publishing-guide."""
    listing = hub("hub.json")
    assert (listing["type"], listing["category"]) == ("serverless", "image")
    assert listing["title"]
    assert listing["description"]
    config = listing["config"]
    assert config["runsOn"] == "GPU"
    assert isinstance(config["containerDiskInGb"], int)
    assert isinstance(config["gpuCount"], int)
    assert config["gpuIds"]
    for case in hub("tests.json")["tests"]:
        assert case["name"]
        assert isinstance(case["timeout"], int)  # milliseconds


def test_the_test_input_is_the_credited_photograph() -> None:
    """The first thing a stranger runs is a real edit of a real picture that may be shipped."""
    job = json.loads((ROOT / "test_input.json").read_text())["input"]
    data = base64.b64decode(job["image_base64"], validate=True)
    assert data == (ROOT / "assets/chelsea.jpg").read_bytes()
    assert "chelsea.jpg" in (ROOT / "assets/CREDITS.md").read_text()
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (384, 256))
    assert [case["input"] for case in hub("tests.json")["tests"]] == [job]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_settings_tables_are_current() -> None:
    """A table written by hand is wrong after the next setting; `make fix` writes these."""
    page = (ROOT / "README.md").read_text()
    assert generator().readme(page) == page
    assert generator().env_example() == (ROOT / ".env.example").read_text()
    assert generator().readme(page.replace("`BATCH_SIZE` |", "`BATCHSIZE` |")) == page


def test_the_example_environment_holds_the_defaults(tmp_path: Path) -> None:
    """Uncommenting every line must change nothing."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    assignments = [line.removeprefix("# ") for line in lines if re.match(r"# [A-Z0-9_]+=", line)]
    assert {line.split("=")[0] for line in assignments} == VARIABLES
    file = tmp_path / ".env"
    file.write_text("\n".join(assignments))
    read = settings.Settings(_env_file=file)
    assert read == settings.Settings(_env_file=None)


def test_make_names_the_missing_python(tmp_path: Path) -> None:
    """A stranger with an old Python reads one sentence instead of a traceback."""
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("sh", "make", "rm", "echo"):
        found = shutil.which(tool)
        assert found, f"{tool} is needed"
        (tools / tool).symlink_to(found)
    done = subprocess.run(
        ["make", "test"], cwd=tmp_path, env={"PATH": str(tools)}, capture_output=True, text=True, timeout=30
    )
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stderr


def test_continuous_integration_runs_the_suite_once() -> None:
    """`make check` runs the tests; the `make test` after it must not run them again, nor be missing."""
    [command] = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("make")]
    plan = subprocess.run(
        [*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert command == "make check test"
    assert plan.stdout.count("-m pytest") == 1
