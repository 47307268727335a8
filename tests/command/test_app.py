"""The commands as people type them: a process each, in process or against a server on loopback."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image as Pillow

from command.app import commands, run
from serverless.usage import SUBCOMMANDS
from tests.api.remote import Remote, content, remote_server
from tests.api.serving import Served, paint, png, serving

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as running:
        yield running


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "in.png").write_bytes(png())
    (tmp_path / "mask.png").write_bytes(png())
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder").mkdir()
    return tmp_path


def typed(
    folder: Path, *arguments: str, stdin: bytes = b"", **given: str
) -> "subprocess.CompletedProcess[bytes]":
    own = {"DEFAULT_MODEL": "pocket-edit", "CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    unset = {"API_KEY", "STANDALONE_MODE", "COLUMNS"}
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [sys.executable, str(ROOT / "handler.py"), *arguments],
        cwd=folder,
        env=kept | own | given,
        input=stdin,
        capture_output=True,
        timeout=90,
    )


def typed_here(
    folder: Path,
    patch: pytest.MonkeyPatch,
    capture: pytest.CaptureFixture[str],
    *arguments: str,
    **given: str,
) -> tuple[int, str, str]:
    """As above without a process of its own, which costs most of a second: status, output, errors."""
    patch.chdir(folder)
    patch.delenv("API_KEY", raising=False)
    for name, value in ({"DEFAULT_MODEL": "pocket-edit"} | given).items():
        patch.setenv(name, value)
    capture.readouterr()
    status = run(arguments)
    printed = capture.readouterr()
    return status, printed.out, " ".join(printed.err.split())


def url(served: Served) -> str:
    return f"http://127.0.0.1:{served.client.port}"


def test_the_program_hands_over_every_command_there_is() -> None:
    """It knows their names without loading what they need."""
    assert set(commands.commands) == SUBCOMMANDS


def test_an_edit_in_this_process(here: Path) -> None:
    """The whole path with a real model; the place of the picture alone goes to standard output."""
    done = typed(here, "edit", "in.png", "make it night", "--size", "64x64", "--steps", "2", "--seed", "5")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b"in-edited.png\n"
    assert b"in-edited.png: 64x64, pocket-edit, 2 steps, seed 5" in done.stderr
    with Pillow.open(here / "in-edited.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (64, 64))


def test_a_picture_of_a_text_in_this_process(here: Path) -> None:
    """With a model that is not the default: whoever types its name allows it."""
    done = typed(
        here,
        *("generate", "a fox", "--model", "pocket-sdxl", "--size", "64x64", "--steps", "1"),
        *("-o", "-", "--format", "webp"),
    )
    assert done.returncode == 0, done.stderr.decode()
    with Pillow.open(io.BytesIO(done.stdout)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (64, 64))


def test_every_option_reaches_the_server(here: Path, served: Served) -> None:
    """In the server's words, unchanged."""
    done = typed(
        here,
        *("edit", "in.png", "a hat", "--url", url(served), "--model", "artist", "--steps", "7"),
        *("--seed", "300", "--cfg", "2.5", "--size", "96x64", "--strength", "0.5", "--mask", "mask.png"),
        *("--lora", "comic:0.5", "--lora", "pencil", "--negative", "rain", "-o", "hat.jpg"),
    )
    assert done.returncode == 0, done.stderr.decode()
    request = served.painter.entered.get(timeout=5)
    assert (request.model, request.prompt, request.negative_prompt) == ("artist", "a hat", "rain")
    assert (request.steps, request.seed, request.cfg, request.strength) == (7, 300, 2.5, 0.5)
    assert (request.size, request.adapters) == ((96, 64), (("comic", 0.5), ("pencil", 1.0)))
    assert request.mask is not None
    assert (len(request.images), request.images[0].size) == (1, (96, 64))
    with Pillow.open(here / "hat.jpg") as picture:
        assert picture.format == "JPEG"


def test_several_pictures_one_of_them_from_standard_input(here: Path, served: Served) -> None:
    """The last word is the prompt, however many pictures are before it."""
    done = typed(here, "edit", "in.png", "-", "mix", "--url", url(served), stdin=png(40, 40))
    assert done.returncode == 0, done.stderr.decode()
    request = served.painter.entered.get(timeout=5)
    assert [image.size for image in request.images] == [(96, 64), (40, 40)]
    assert request.prompt == "mix"


def test_a_file_that_is_there_is_not_lost(here: Path, served: Served) -> None:
    """A name of our own choice is a free one; a name that was given is meant."""
    generate = ("generate", "A fox!", "--model", "dreamer", "--url", url(served), "--seed", "4")
    names = [typed(here, *generate).stdout for _ in range(2)]
    assert names == [b"a-fox.png\n", b"a-fox-2.png\n"]
    kept = here / "kept.png"
    kept.write_bytes(b"old")
    kept.chmod(0o640)
    assert typed(here, *generate, "-o", "kept.png").returncode == 0
    with Pillow.open(kept) as picture:
        assert picture.getpixel((0, 0)) == tuple(paint(4))
    assert kept.stat().st_mode & 0o777 == 0o640
    assert not [path for path in here.iterdir() if path.name.startswith(".kept")]


EDIT = ("edit", "in.png", "night")
WRONG: list[tuple[tuple[str, ...], int, str]] = [
    (("edit",), 2, "edit needs a picture and a prompt"),
    (("edit", "in.png"), 2, "edit needs a picture and a prompt"),
    (("generate",), 2, "Missing argument 'PROMPT'"),
    (("edit", "missing.png", "night"), 2, "missing.png: no such file"),
    (("edit", "folder", "night"), 2, "folder: cannot be read (Is a directory)"),
    (("edit", "empty.png", "night"), 2, "empty.png: is empty"),
    (("edit", "-", "-", "night"), 2, "standard input (-) holds one picture"),
    (("edit", "in.png", "text.png", "night"), 2, "text.png: "),
    ((*EDIT, "--mask", "text.png", "--model", "artist"), 2, "--mask: "),
    ((*EDIT, "--size", "64"), 2, "write width x height"),
    ((*EDIT, "--size", "9999x64"), 2, "--size: width 9999 is outside 64 to 2048"),
    ((*EDIT, "--lora", "comic:much"), 2, "'much' is no scale"),
    (
        (*EDIT, "--lora", "comc", "--model", "artist"),
        2,
        "--lora: no such lora for artist; did you mean 'comic'",
    ),
    ((*EDIT, "--steps", "many"), 2, "'many' is not a valid integer"),
    ((*EDIT, "--steps", "5000"), 2, "--steps: num_inference_steps 5000 is outside"),
    ((*EDIT, "--stps", "5"), 2, "No such option"),
    ((*EDIT, "--model", "paintr"), 2, "--model: no such model here; did you mean 'painter'?"),
    ((*EDIT, "-o", "out.tiff"), 2, "out.tiff ends in none of .png, .jpg, .jpeg, .webp"),
    ((*EDIT, "-o", "folder"), 2, "folder is a folder"),
    ((*EDIT, "-o", "no/where.png"), 2, "there is no folder no"),
    ((*EDIT, "--format", "gif"), 2, "'gif' is not one of"),
    (("edit", "in.png", " "), 2, "prompt is empty"),
    (("generate", "a fox"), 2, "--model"),
    (("jobs", "list"), 1, "cannot keep jobs"),
    (("jobs", "show", "abc"), 1, "cannot keep jobs"),
    (("jobs", "cancel", "../run"), 2, "this server keeps no jobs"),
]


@pytest.mark.parametrize(("arguments", "status", "words"), WRONG)
def test_what_is_wrong_is_said(
    here: Path,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    status: int,
    words: str,
) -> None:
    """One sentence that names it and the way out; and nothing is left behind."""
    before = sorted(here.iterdir())
    got, out, told = typed_here(here, monkeypatch, capsys, *arguments, "--url", url(served))
    assert (got, out) == (status, ""), told
    assert words in told
    assert sorted(here.iterdir()) == before


def test_nothing_on_standard_input_is_said(here: Path, served: Served) -> None:
    """Also by the program itself: a status and no traceback."""
    done = typed(here, "edit", "-", "night", "--url", url(served))
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"Error: standard input: is empty; a picture is needed\n"


HERE_WRONG: list[tuple[tuple[str, ...], dict[str, str], str]] = [
    (("generate", "a fox"), {}, "choose with --model or DEFAULT_MODEL one of qwen-image,"),
    ((*EDIT, "--model", "pocket-image"), {}, "pocket-image cannot edit pictures"),
    ((*EDIT, "--model", "pocket-edt"), {}, "--model: no such model here; did you mean 'pocket-edit'?"),
    (EDIT, {"DEFAULT_MODEL": "pocket-edt"}, "DEFAULT_MODEL: no such model here"),
    (EDIT, {"BATCH_SIZE": "many"}, "BATCH_SIZE"),
    (("jobs", "list"), {}, "say which with --url"),
]


@pytest.mark.parametrize(("arguments", "given", "words"), HERE_WRONG)
def test_what_is_wrong_here_is_said(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    given: dict[str, str],
    words: str,
) -> None:
    """As above, for what this process finds out by itself before a model is loaded."""
    status, out, told = typed_here(here, monkeypatch, capsys, *arguments, **given)
    assert (status, out) == (2, "")
    assert words in told


def test_a_model_that_needs_a_gpu_says_what_runs_without(here: Path) -> None:
    """The first thing that happens to somebody who tries it on a laptop."""
    done = typed(here, *EDIT, DEFAULT_MODEL="qwen-image-edit-2509")
    assert done.returncode == 1
    assert b"DEFAULT_MODEL=pocket-edit" in done.stderr
    assert b"Traceback" not in done.stderr


REFUSALS = [
    (401, {"detail": "Missing key"}, 2, "Missing key; send it with --api-key or API_KEY"),
    (429, {"error": "too much waits"}, 3, "too much waits"),
    (500, {"error": "the server failed"}, 1, "the server failed"),
    (503, {}, 3, "status 503 and no reason"),
    (302, {}, 2, "sends us on to https://elsewhere.example; give that as --url"),
    (200, {"status": "fine"}, 1, "the answer holds no picture"),
    (200, None, 1, "answers no JSON"),
]


@pytest.mark.parametrize(("code", "body", "status", "words"), REFUSALS)
def test_a_refusal_is_passed_on(
    here: Path,
    remote: Remote,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
    body: object,
    status: int,
    words: str,
) -> None:
    """With a status that tells a script whether another try can help."""
    data = b"<html>" if body is None else json.dumps(body).encode()
    remote.routes["/runsync"] = content(data, status=code, Location="https://elsewhere.example")
    asked = (*EDIT, "--url", remote.url(""))
    got, _, told = typed_here(here, monkeypatch, capsys, *asked, API_KEY="open-sesame")
    assert (got, words in told) == (status, True), told
    assert remote.seen[0]["authorization"] == "Bearer open-sesame"
    assert "sesame" not in told


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [("http://127.0.0.1:9", 3, "does not answer"), ("ftp://x", 2, "is no http:// or https:// address")],
)
def test_nobody_there(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    address: str,
    status: int,
    words: str,
) -> None:
    """The address may be wrong or the server not yet up; either way it is named."""
    got, _, told = typed_here(here, monkeypatch, capsys, *EDIT, "--url", address)
    assert (got, words in told) == (status, True), told


def test_models_of_a_server_and_of_this_machine(
    here: Path, served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """* marks the one that is meant when none is named."""
    _, there, _ = typed_here(here, monkeypatch, capsys, "models", "--url", url(served))
    assert there.splitlines() == ["* painter", "  artist", "  dreamer"]
    lines = typed_here(here, monkeypatch, capsys, "models")[1].splitlines()
    assert [" ".join(line.split()) for line in lines if "pocket-edit " in line or "pocket-sam3 " in line] == [
        "* pocket-edit edit 4 steps no GPU MIT",
        "pocket-sam3 segment no GPU MIT",
    ]


JOBS = [
    {"id": "b2", "state": "running", "created_at": "2026-11-21T10:00:00.000+00:00"},
    {"id": "a1", "state": "completed", "created_at": "2026-11-21T09:00:00.000+00:00"},
]
KEYED = {
    job["id"]: {"job_id": job["id"], "status": job["state"], "created_at": job["created_at"]} for job in JOBS
}


@pytest.mark.parametrize("page", [{"jobs": JOBS, "after": "a1"}, KEYED])
def test_jobs_are_listed(
    here: Path,
    remote: Remote,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    page: dict[str, object],
) -> None:
    """From a page of them, and keyed by id as older clients know it."""
    remote.routes["/jobs"] = content(json.dumps(page).encode())
    _, out, told = typed_here(here, monkeypatch, capsys, "jobs", "list", "--url", remote.url(""))
    assert [line.split()[:2] for line in out.splitlines()] == [["b2", "running"], ["a1", "completed"]]
    assert ("--after a1" in told) == ("after" in page)


def test_a_job_is_shown_without_its_picture_and_cancelled(
    here: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal is no place for a megabyte of base64."""
    job = JOBS[1] | {"result": {"image": "A" * 5000, "seed": 7}}
    remote.routes["/jobs/a1"] = content(json.dumps(job).encode())
    show, cancel = (("jobs", verb, "a1", "--url", remote.url("")) for verb in ("show", "cancel"))
    _, shown, _ = typed_here(here, monkeypatch, capsys, *show)
    assert json.loads(shown)["result"] == {"image": "(5000 characters)", "seed": 7}
    remote.routes["/jobs/a1"] = content(json.dumps(job | {"state": "cancelled"}).encode())
    assert typed_here(here, monkeypatch, capsys, *cancel)[1] == "a1: cancelled\n"


@pytest.fixture
def remote() -> Iterator[Remote]:
    with remote_server() as running:
        yield running
