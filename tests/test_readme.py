"""The README's commands, run as printed: against a real server, in a copy of the tree.

Two things are replaced: port 8000 by a free one, and https://example.com by a server on this machine.
"""

import base64
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import settings

ROOT = Path(__file__).resolve().parent.parent
STRANGER = {variable for variable, _, _ in settings.describe()}  # none of which a newcomer has set


@dataclass(frozen=True)
class Block:
    """A fenced block: its first line's number in the file, its language, its lines."""

    line: int
    language: str
    text: str

    @property
    def serves(self) -> bool:
        """Starts the HTTP server, which runs until it is stopped."""
        return bool(
            re.fullmatch(r"(STANDALONE_MODE=1 (\w+=\S+ )*python handler\.py|make serve)\s*", self.text)
        )

    @property
    def calls(self) -> bool:
        return "//localhost:8000" in self.text


def fenced(page: str) -> list[Block]:
    """Every fenced block. Raises ``ValueError`` for a fence that is not closed."""
    blocks, opened = [], None
    for number, line in enumerate(page.splitlines(), 1):
        if opened is None:
            if match := re.match(r"\s*(```+|~~~+)\s*(.*)", line):
                opened, start, fence, body = match[2].strip(), number + 1, match[1], list[str]()
        elif line.strip() == fence:
            blocks.append(Block(start, opened, "\n".join(body) + "\n"))
            opened = None
        else:
            body.append(line)
    if opened is not None:
        raise ValueError(f"the fence before line {start} is never closed")
    return blocks


BLOCKS = fenced((ROOT / "README.md").read_text())


@dataclass(frozen=True)
class Workspace:
    """A copy of the tree and the environment in which a stranger's shell would run there."""

    folder: Path
    environment: dict[str, str]
    port: int
    pictures: int  # port of the stand-in for example.com

    def command(self, text: str) -> list[str]:
        text = text.replace("//localhost:8000", f"//localhost:{self.port}")
        text = text.replace("https://example.com", f"http://127.0.0.1:{self.pictures}")
        # This very test is part of what `make test` runs: ask make what it would do.
        text = re.sub(r"^make test$", "make --dry-run test | grep -e '-m pytest'", text, flags=re.MULTILINE)
        return ["bash", "-euo", "pipefail", "-c", text]

    def run(self, text: str) -> str:
        """What ``text`` prints. Raises ``AssertionError`` unless it exits 0."""
        done = subprocess.run(
            self.command(text),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, (
            f"{text}\nexit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
        return done.stdout


class Pictures(http.server.BaseHTTPRequestHandler):
    """Answers every path with the photograph."""

    def do_GET(self) -> None:
        data = (ROOT / "assets/chelsea.jpg").read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    folder = tmp_path_factory.mktemp("readme") / "batchmux"
    made = shutil.ignore_patterns(".git", ".venv", ".env", ".*_cache", ".hypothesis", "__pycache__", "out")
    shutil.copytree(ROOT, folder, ignore=made)
    (folder / ".venv").symlink_to(sys.prefix)  # what `make` would install is installed
    (folder.parent / ".curlrc").write_text("fail\nsilent\nshow-error\nmax-time = 120\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as pictures:
        threading.Thread(target=pictures.serve_forever, daemon=True).start()
        environment = {key: value for key, value in os.environ.items() if key not in STRANGER}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
            "CURL_HOME": str(folder.parent),  # curl must exit non-zero on an error status
            "OMP_NUM_THREADS": "1",
            "MAKEFLAGS": "",  # of the make that runs these tests
            "API_PORT": str(port),
            "FETCH_ALLOW_HOSTS": f"127.0.0.1:{pictures.server_port}",
        }
        yield Workspace(folder, environment, port, pictures.server_port)
        pictures.shutdown()


@pytest.fixture(scope="module")
def server(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The README's own server, ready to answer; stopped as an operator stops it."""
    [block] = [block for block in BLOCKS if block.serves]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            workspace.command(f"exec env {block.text}"),
            cwd=workspace.folder,
            env=workspace.environment,
            stdout=out,
            stderr=out,
        )
    ready = "exec curl --retry 90 --retry-delay 1 --retry-all-errors http://localhost:8000/ready"
    waiting = subprocess.Popen(workspace.command(ready), env=workspace.environment, stdout=subprocess.DEVNULL)

    def stop_waiting() -> None:
        process.wait()  # a server that died will not become ready
        waiting.terminate()

    threading.Thread(target=stop_waiting, daemon=True).start()
    try:
        assert waiting.wait(timeout=120) == 0, "the server did not become ready"
        yield
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()[-4000:]}") from None
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)
    assert status == 0, f"the server ended with {status}\n{log.read_text()[-4000:]}"


def check(block: Block, workspace: Workspace) -> None:
    """Run or read one block. Raises ``AssertionError`` where it is wrong or of no known kind."""
    if block.language == "json":
        json.loads(block.text)
    elif block.language == "text":
        hidden = re.search(r"^\s*(\$ |curl|make|python|pip|STANDALONE)", block.text, re.MULTILINE)
        assert not hidden, f"line {block.line}: a command hides in a text block"
    elif block.language == "bash":
        printed = workspace.run(block.text)
        for answer in re.findall(r'^\{"image".*\}$', printed, re.MULTILINE):
            assert base64.b64decode(json.loads(answer)["image"])[1:4] == b"PNG"
    else:
        raise AssertionError(f"line {block.line}: nobody knows how to check a block of {block.language!r}")


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line{block.line}")
def test_a_block_of_the_readme_works(
    block: Block, workspace: Workspace, request: pytest.FixtureRequest
) -> None:
    """A command that does not work is worse than none."""
    if block.serves or block.calls:
        request.getfixturevalue("server")
    if not block.serves:
        check(block, workspace)


def test_the_readme_shows_what_it_must() -> None:
    """The two commands, the server, the calls of existing clients: without them nothing is tested."""
    commands = "".join(block.text for block in BLOCKS if block.language == "bash")
    for needed in ("make run\n", "make test\n", "/run ", "/health", "image_url", "base64 -i test.jpg"):
        assert needed in commands
    assert sum(block.serves for block in BLOCKS) == 1


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("bash", "false\necho fine\n"),
        ("bash", "python -c 'raise SystemExit(3)' | cat\n"),
        ("bash", "no-such-command\n"),
        ("json", "{'a': 1}\n"),
        ("text", "curl http://localhost:8000/nothing\n"),
        ("ruby", "puts 1\n"),
        ("", "make run\n"),
    ],
)
def test_a_block_that_does_not_work_is_caught(workspace: Workspace, language: str, text: str) -> None:
    """The check above must be able to fail."""
    with pytest.raises((AssertionError, ValueError)):
        check(Block(1, language, text), workspace)


def test_a_refused_call_is_caught(workspace: Workspace, server: None) -> None:
    """curl exits 0 on an error status unless told otherwise."""
    check(Block(1, "bash", "curl http://localhost:8000/live\n"), workspace)
    with pytest.raises(AssertionError):
        check(Block(1, "bash", "curl http://localhost:8000/nothing\n"), workspace)


def test_an_open_fence_is_caught() -> None:
    """It would swallow every block after it."""
    assert [block.text for block in fenced("```bash\na\n```\n\n~~~text\n```\n~~~\n")] == ["a\n", "```\n"]
    with pytest.raises(ValueError, match="never closed"):
        fenced("```bash\nmake run\n")


PAGES = [
    ROOT / name
    for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "assets/CREDITS.md", "docs/ray-serve.md")
]


def dangling(page: Path, text: str) -> list[str]:
    """Relative links, and paths of ours in backticks, that lead nowhere."""
    links = re.findall(r"\]\(([^):]+)\)", text)
    paths = re.findall(r"`(\.?\w+/(?:\w+/)*(?:[\w-]+\.\w+)?)`", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    return missing + [path for path in paths if not (ROOT / path).exists() and "skimage" not in path]


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "docs/adr").glob("*.md"))], ids=lambda p: p.name)
def test_what_a_page_points_at_exists(page: Path) -> None:
    """A map that names files that were renamed is worse than no map."""
    assert dangling(page, page.read_text()) == []
    assert len(dangling(page, "[a](no/such.md) `batching/nothing.py` `no_folder/`")) == 3
