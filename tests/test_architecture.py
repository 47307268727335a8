"""Who may import whom, and what a page may look like, read from the syntax tree of every file."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Folders and files of the house, and what of ours each may import. "a.b" admits that module alone.
MAY_IMPORT = {
    "core": {"core"},
    "settings": {"variables"},
    "variables": {"variables"},
    "batching": {"core", "batching"},
    "pipelines": {"core", "pipelines"},
    "api": {"core", "api"},
    "serverless": {"core", "api", "settings", "serverless"},
    "main": {"gateway"},
    "handler": {
        *("settings", "core", "batching", "api", "serverless"),
        *("pipelines.registry", "pipelines.manager", "pipelines.download"),
        "command.app",
    },
    "command": {
        *("command", "settings", "core", "api", "batching"),
        *("pipelines.registry", "pipelines.manager", "serverless.modes"),
    },
    "gateway": {"core", "api", "settings", "gateway"},
}
WORKSHOP = {"tests", "benchmarks", "training", "docs", "deploy"}  # may import everything of ours

# Where in the house a library may be imported, at the top of a file or later, by name or by string.
CONFINED = {
    "torch": ("pipelines/",),
    "diffusers": ("pipelines/",),
    "transformers": ("pipelines/",),
    "peft": ("pipelines/",),
    "accelerate": ("pipelines/",),
    "bitsandbytes": ("pipelines/",),
    "torchao": ("pipelines/",),
    "fastapi": ("api/app.py",),
    "runpod": ("serverless/worker.py",),
    "click": ("command/",),
    "threading": ("batching/mux.py", "api/job_writer.py"),
}
BANNED = {"asyncio": ("batching/", "pipelines/")}
TEST_TRICKS = {
    "unittest.mock": "a patch means that a seam is missing",
    "monkeypatch.setattr": "a patch means that a seam is missing",
    "time.sleep": "wait for an event, with a timeout",
    "pytest.skip": "a test that does not run proves nothing",
    "pytest.importorskip": "a test that does not run proves nothing",
}
MOST_LINES = {"handler.py": 80, "tests": 500}  # a table of cases may be long
CEILING = 350
NOBODYS_FILES = {"utils.py", "helpers.py", "common.py", "misc.py"}


def sources(root: Path) -> list[Path]:
    hidden_or_made = ("out", "models", "__pycache__", "node_modules")
    return sorted(
        path
        for path in root.rglob("*.py")
        if not any(part.startswith(".") or part in hidden_or_made for part in path.relative_to(root).parts)
    )


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, at any depth, also by string; ``package`` resolves dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in {
            "import_module",
            "__import__",
        }:
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def within(name: str, allowed: set[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def violations(root: Path) -> list[str]:
    """One sentence for each broken rule under ``root``."""
    found: list[str] = []
    families = families_of(root)
    ours = {path.name.removesuffix(".py") for path in root.iterdir() if path.suffix == ".py" or path.is_dir()}
    for path in sources(root):
        where = path.relative_to(root).as_posix()
        text = path.read_text()
        tree = ast.parse(text)
        top = where.split("/")[0].removesuffix(".py")
        limit = MOST_LINES.get(where, MOST_LINES.get(top, CEILING))
        lines = len(text.splitlines())
        if lines > limit:
            found.append(f"{where}: {lines} lines are over the limit of {limit}")
        if path.name in NOBODYS_FILES:
            found.append(f"{where}: a file that nobody owns")
        if text.strip() and not ast.get_docstring(tree):
            found.append(f"{where}: no docstring says what it is for")
        package = ".".join(path.relative_to(root).parts[:-1])
        for line, name in imported(tree, package):
            at = f"{where}:{line}"
            root_name = name.split(".")[0]
            if top in WORKSHOP:
                continue
            if root_name in ours and not within(name, MAY_IMPORT.get(top, set())):
                found.append(f"{at}: {top} must not import {name}")
            if root_name in CONFINED and not where.startswith(CONFINED[root_name]):
                found.append(f"{at}: {root_name} only in {', '.join(CONFINED[root_name])}")
            if root_name in BANNED and where.startswith(BANNED[root_name]):
                found.append(f"{at}: {root_name} never here")
            family, other = family_of(".".join([package, path.stem]), families), family_of(name, families)
            if family and other and family != other:
                found.append(f"{at}: family {family} imports family {other}")
        found += used_names(where, tree)
    return found


def used_names(where: str, tree: ast.AST) -> Iterator[str]:
    """The environment read outside settings.py; tricks in tests. An import counts as a use."""
    names = [(line, name) for line, name in imported(tree, "")]
    names += [(node.lineno, dotted(node)) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    top = where.split("/")[0]
    for line, name in names:
        if name in {"os.environ", "os.getenv", "os.putenv"} and top not in {*WORKSHOP, "settings.py"}:
            yield f"{where}:{line}: {name} only in settings.py"
        for trick, remedy in TEST_TRICKS.items():
            if top == "tests" and (name == trick or name.startswith(f"{trick}.")):
                yield f"{where}:{line}: {trick}: {remedy}"


ROWS = ("registry.py", "vision_rows.py")


def families_of(root: Path) -> set[str]:
    """The modules that registry rows name as their factories: ``"pipelines.qwen_image:load"``."""
    rows = [file for name in ROWS if (file := root / "pipelines" / name).exists()]
    trees = [ast.walk(ast.parse(file.read_text())) for file in rows]
    strings = (n.value for tree in trees for n in tree if isinstance(n, ast.Constant))
    return {
        s.split(":")[0] for s in strings if isinstance(s, str) and s.startswith("pipelines.") and ":" in s
    }


def family_of(name: str, families: set[str]) -> str | None:
    """Files of one family begin with one word: ``pipelines.qwen_image`` and ``pipelines.qwen_vae``."""
    words = {family.split("_")[0]: family for family in families}
    return next(
        (family for word, family in words.items() if within(name, {word}) or name.startswith(f"{word}_")),
        None,
    )


def test_the_house_keeps_its_rules() -> None:
    """The rules are what makes a part replaceable; a rule nobody checks is a wish."""
    assert violations(ROOT) == []


def test_the_whole_house_is_there_to_be_checked() -> None:
    """A missing or renamed folder must not make the rules hold by having nothing to say."""
    present = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in sources(ROOT)}
    assert {"handler", "settings", "core", "batching", "pipelines", "api", "serverless"} <= present
    assert set(MAY_IMPORT) <= present <= set(MAY_IMPORT) | WORKSHOP
    assert families_of(ROOT)


PLANTED = [
    ("core/x.py", "import settings", "core must not import settings"),
    ("batching/x.py", "from pipelines import registry", "batching must not import pipelines.registry"),
    ("pipelines/x.py", "def f():\n    from batching.mux import M", "pipelines must not import batching"),
    ("api/x.py", "import batching.mux", "api must not import batching"),
    ("serverless/x.py", "import pipelines.registry", "serverless must not import pipelines"),
    (
        "handler.py",
        "from pipelines.manager import M\nimport pipelines.sd",
        "handler must not import pipelines.sd",
    ),
    ("settings.py", "from core import request", "settings must not import core"),
    ("api/x.py", "def f():\n    import torch", "torch only in pipelines/"),
    ("batching/x.py", "from torch.nn import Linear", "torch only in"),
    ("api/x.py", "import importlib\nimportlib.import_module('diffusers')", "diffusers only in"),
    ("handler.py", "m = __import__('transformers')", "transformers only in"),
    ("api/run.py", "from fastapi import FastAPI", "fastapi only in"),
    ("handler.py", "def main():\n    import runpod", "runpod only in"),
    ("serverless/loop.py", "from runpod.serverless import start", "runpod only in"),
    ("pipelines/x.py", "import threading", "threading only in"),
    ("pipelines/x.py", "import asyncio", "asyncio never here"),
    ("batching/mux.py", "def f():\n    from asyncio import Future", "asyncio never here"),
    ("api/x.py", "import os\nkey = os.environ['KEY']", "os.environ only in settings.py"),
    ("pipelines/x.py", "from os import getenv", "os.getenv only in settings.py"),
    ("pipelines/sd.py", "from pipelines import qwen", "family pipelines.sd imports family pipelines.qwen"),
    ("pipelines/sd.py", "from .qwen import step", "family pipelines.sd imports family pipelines.qwen"),
    (
        "pipelines/sd_text.py",
        "from pipelines.qwen_vae import decode",
        "family pipelines.sd imports family pipelines.qwen",
    ),
    ("api/utils.py", "", "a file that nobody owns"),
    ("tests/test_x.py", "import time\ntime.sleep(1)", "time.sleep: wait for an event"),
    ("tests/test_x.py", "from unittest import mock", "unittest.mock: a patch"),
    ("tests/test_x.py", "def t(monkeypatch):\n    monkeypatch.setattr(1, 2)", "monkeypatch.setattr: a patch"),
    ("api/x.py", "a = 1\n" * 349, "351 lines are over the limit of 350"),
    ("tests/test_x.py", "a = 1\n" * 499, "501 lines are over the limit of 500"),
    ("handler.py", "a = 1\n" * 79, "81 lines are over the limit of 80"),
]


@pytest.mark.parametrize(("where", "code", "sentence"), PLANTED)
def test_a_planted_breach_is_caught(tmp_path: Path, where: str, code: str, sentence: str) -> None:
    """Each rule must be able to fail."""
    plant(tmp_path, where, f'"""Planted."""\n{code}\n')
    found = violations(tmp_path)
    assert len(found) == 1, found
    assert sentence in found[0]
    assert found[0].startswith(where)


def test_a_file_without_a_docstring_is_caught(tmp_path: Path) -> None:
    """As above, for the one rule that the planted files keep."""
    plant(tmp_path, "api/x.py", "a = 1\n")
    assert violations(tmp_path) == ["api/x.py: no docstring says what it is for"]


def plant(root: Path, where: str, code: str) -> None:
    """A small, rule-abiding house, then ``code`` in one of its files."""
    house = {
        "handler.py": "import api.app\nfrom pipelines.registry import SPECS",
        "settings.py": "import os\nhome = os.environ",
        "core/request.py": "import dataclasses",
        "batching/mux.py": "import threading\nfrom core.request import R",
        "pipelines/registry.py": "SPECS = ('pipelines.qwen:load', 'pipelines.sd:load')",
        "pipelines/manager.py": "import core.request",
        "pipelines/qwen.py": "import torch\nfrom . import denoising",
        "pipelines/sd.py": "import diffusers\nfrom pipelines.denoising import loop",
        "pipelines/denoising.py": "import torch",
        "api/app.py": "import asyncio\nfrom fastapi import FastAPI",
        "serverless/worker.py": "def run():\n    import runpod, settings",
        "tests/test_mux.py": "import os, torch, batching.mux\nos.environ.copy()",
    }
    for name, text in house.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(f'"""A part."""\n{text}\n')
    assert violations(root) == []
    (root / where).write_text(code)


def test_importing_the_handler_loads_no_heavy_library() -> None:
    """A worker must answer health checks within a second of its start, while torch still imports."""
    heavy = {"torch", "diffusers", "transformers", "fastapi", "uvicorn", "runpod"}
    modules = "handler, batching.mux, pipelines.registry, pipelines.manager"
    script = f"import sys, {modules}; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
