"""The edit form: pictures and texts in, PNG bytes out, and errors of exactly three fields."""

import io
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from PIL import Image as Pillow

from core.catalog import Catalog
from core.errors import CapacityError, DeviceLost, ExecutionError, OutOfDeviceMemory
from core.request import InferenceRequest
from core.result import InferenceResult, OnProgress, Progress
from core.service import LoadedModel
from tests.api.printed_lines import printed
from tests.api.serving import DREAMER, INSIDE, PAINTER, Served, paint, png, serving, text

ROOT = Path(__file__).resolve().parents[2]
FILE = ("photo.png", png(96, 64), "image/png")


@pytest.fixture(scope="module")
def form() -> Iterator[Served]:
    # The default makes pictures of texts alone: the form finds the one that edits.
    with serving(catalog=Catalog([DREAMER, PAINTER], default="dreamer")) as running:
        yield running


def edit(form: Served, files: object, fields: dict[str, str]) -> requests.Response:
    url = f"http://127.0.0.1:{form.client.port}/edit"
    return requests.post(url, files=files, data=fields, timeout=20)  # type: ignore[arg-type]


def asked(form: Served, files: object, fields: dict[str, str]) -> InferenceRequest:
    while not form.painter.entered.empty():
        form.painter.entered.get()
    answer = edit(form, files, fields)
    assert answer.status_code == 200, answer.text
    return form.painter.entered.get(timeout=5)


def fault(answer: requests.Response) -> tuple[int, str, object]:
    body = answer.json()
    assert body.keys() == {"error", "detail", "request_id"}
    assert body["request_id"] == answer.headers["x-request-id"]
    assert not INSIDE.search(answer.content)
    return answer.status_code, body["error"], body["detail"]


def test_a_form_is_answered_with_png_bytes(form: Served) -> None:
    """With the id for the log and the seed that repeats it."""
    answer = edit(form, {"image": FILE}, {"prompt": "a hat", "seed": "1234"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.headers["x-seed"] == "1234"
    assert answer.headers["x-request-id"]
    with Pillow.open(io.BytesIO(answer.content)) as picture:
        assert picture.getpixel((0, 0)) == tuple(paint(1234))


def test_every_field_arrives(form: Served) -> None:
    """As numbers, though a form holds texts."""
    fields = {"prompt": " a hat ", "seed": "7", "guidance_scale": "6.5", "steps": "12"}
    request = asked(form, {"image": FILE}, fields)
    assert (request.model, request.prompt, request.seed) == ("painter", " a hat ", 7)
    assert (request.cfg, request.steps, [image.size for image in request.images]) == (6.5, 12, [(96, 64)])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"guidance_scale": "0", "seed": "-1"},
        {"guidance_scale": "-3"},
        {"guidance_scale": "", "seed": "", "steps": ""},
    ],
)
def test_what_is_not_said_is_the_models_own(fields: dict[str, str], form: Served) -> None:
    """Also a guidance of nothing or less, and fields that a page sends empty."""
    request = asked(form, {"image": FILE}, {"prompt": "p", **fields})
    assert (request.steps, request.cfg) == (PAINTER.steps, PAINTER.cfg)
    assert 0 <= request.seed < 2**32


@pytest.mark.parametrize(
    ("files", "fields"),
    [
        ([("image", FILE), ("image", FILE)], {}),
        ([("image[]", FILE), ("image[]", FILE)], {}),
        ([("image", FILE), ("image_2", FILE)], {}),
        ([("image", FILE)], {"image_base64_2": text(png(8, 8))}),
        (
            [("image", (None, "data:image/png;base64," + text(png(8, 8)))), ("image_2", FILE)],
            {"image_url": ""},
        ),
    ],
    ids=["repeated", "list", "numbered", "base64", "data-uri"],
)
def test_several_pictures_are_taken(files: object, fields: dict[str, str], form: Served) -> None:
    """For models that look at more than one, under the names other clients use."""
    assert len(asked(form, files, {"prompt": "p", **fields}).images) == 2


@pytest.mark.parametrize(
    ("file", "error", "detail"),
    [
        (("notes.txt", b"hello", "text/plain"), "invalid_file", "File must be an image"),
        (("a.png", b"", "image/png"), "invalid_image", "Empty file"),
        (("a.txt", b"", "text/plain"), "invalid_image", "Empty file"),
        (("a.png", b"\x89PNG nonsense", "image/png"), "invalid_image", "Invalid image: "),
        (("a", b"nonsense"), "invalid_image", "Invalid image: "),
    ],
)
def test_a_file_that_is_no_picture_is_refused(
    file: tuple[str, ...], error: str, detail: str, form: Served
) -> None:
    """By the words its clients know."""
    status, word, said = fault(edit(form, {"image": file}, {"prompt": "p"}))
    assert (status, word) == (400, error)
    assert isinstance(said, str)
    assert said.startswith(detail)


def test_a_picture_under_a_wrong_type_is_a_picture(form: Served) -> None:
    """Many clients declare every file as a stream of bytes."""
    file = ("photo", png(96, 64), "application/octet-stream")
    assert edit(form, {"image": file}, {"prompt": "p"}).status_code == 200


@pytest.mark.parametrize(
    ("files", "fields", "place"),
    [
        ({"image": FILE}, {}, ["body", "prompt"]),
        ({"image": FILE}, {"prompt": ""}, ["body", "prompt"]),
        ({"image": FILE}, {"prompt": "   "}, ["body", "prompt"]),
        ({"other": FILE}, {"prompt": "p"}, ["body"]),
        ({"image": FILE}, {"prompt": "p", "steps": "x"}, ["body", "steps"]),
        ({"image": FILE}, {"prompt": "p", "steps": "0"}, ["body", "steps"]),
        ({"image": FILE}, {"prompt": "p", "steps": "101"}, ["body", "steps"]),
        ({"image": FILE}, {"prompt": "p", "seed": "1.5"}, ["body", "seed"]),
        ({"image": FILE}, {"prompt": "p", "guidance_scale": "nan"}, ["body", "guidance_scale"]),
        ({"image": FILE}, {"prompt": "p", "guidance_scale": "30"}, ["body", "guidance_scale"]),
        ({"image": FILE}, {"prompt": "p", "step": "3"}, ["body"]),
        ([("image", FILE)] * 4, {"prompt": "p"}, ["body", "image"]),
    ],
)
def test_a_field_that_is_missing_or_wrong_is_placed(
    files: object, fields: dict[str, str], place: list[str], form: Served
) -> None:
    """As FastAPI does it, beside the three fields of every error."""
    status, word, detail = fault(edit(form, files, fields))
    assert (status, word) == (422, "validation_error")
    assert isinstance(detail, list)
    assert detail[0]["loc"] == place


def test_a_form_without_a_picture_says_so(form: Served) -> None:
    """An urlencoded one is a form too, and has no files."""
    answer = form.client.request(
        "POST", "/edit", b"prompt=p", {"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert answer.status == 422
    assert answer.json()["detail"] == [{"type": "missing", "loc": ["body", "image"], "msg": "Field required"}]


@pytest.mark.parametrize(
    ("raised", "status", "word"),
    [
        (OutOfDeviceMemory(), 503, "gpu_oom"),
        (ExecutionError("pipeline_error", "broke"), 503, "inference_error"),
        (DeviceLost(), 503, "inference_error"),
        (KeyError("/home/secret.py"), 503, "inference_error"),
        (ExecutionError("deadline_exceeded", "late"), 504, "timeout"),
        (CapacityError("queue_full", "256 wait"), 429, "http_error"),
    ],
)
def test_failures_have_their_words(raised: Exception, status: int, word: str, form: Served) -> None:
    """Clients choose by them whether to try again."""
    form.painter.fault = raised
    try:
        assert fault(edit(form, {"image": FILE}, {"prompt": "p"}))[:2] == (status, word)
    finally:
        form.painter.fault = None


@pytest.mark.parametrize(
    ("begun", "sentence"), [(False, "Request timed out waiting for GPU"), (True, "Inference timed out")]
)
def test_a_deadline_says_whether_the_work_had_begun(begun: bool, sentence: str) -> None:
    """A longer deadline helps in one case, a second GPU in the other."""

    async def late(request: InferenceRequest, on_progress: OnProgress | None = None) -> InferenceResult:
        assert on_progress is not None
        if begun:
            on_progress(Progress(state="running", step=1, steps=2))
        raise ExecutionError("deadline_exceeded", "late")

    with serving(submit=late) as running:
        answer = edit(running, {"image": FILE}, {"prompt": "p"})
    assert fault(answer) == (504, "timeout", sentence)


@pytest.mark.parametrize(("kind", "status"), [("application/json", 415), ("multipart/form-data", 415)])
def test_what_is_no_form_is_refused(kind: str, status: int, form: Served) -> None:
    """In the same three fields."""
    answer = form.client.request("POST", "/edit", b"{}", {"Content-Type": kind})
    assert (answer.status, answer.json()["error"]) == (status, "http_error")


def test_the_gpu_is_told_of(form: Served) -> None:
    """Null where there is none; the figures of the moment where there is one."""
    nothing = form.client.get("/health/gpu").json()
    assert nothing == {
        "status": "ok",
        "cuda_available": True,
        "model_loaded": False,
        "device_name": None,
        "allocated_mb": None,
        "reserved_mb": None,
        "compute_capability": None,
    }
    before = form.probe.health
    device: dict[str, str | float] = {
        "name": "H100",
        "compute_capability": "9.0",
        "allocated_mb": 1.5,
        "reserved_mb": 2.0,
    }
    form.probe.health = replace(
        before, models=(LoadedModel(name="painter", bytes=1, precision="fp32"),), device=device
    )
    try:
        told, health = form.client.get("/health/gpu").json(), form.client.get("/health").json()
    finally:
        form.probe.health = before
    assert (told["device_name"], told["allocated_mb"], told["model_loaded"]) == ("H100", 1.5, True)
    assert (health["model_loaded"], health["gpu_memory_mb"]) == (True, 1.5)


def test_its_printed_command_line_makes_a_picture(form: Served, tmp_path: Path) -> None:
    """People begin by pasting it."""
    with Pillow.open(ROOT / "assets/chelsea.jpg") as photo:
        photo.save(tmp_path / "image.jpg")
    printed("edit", form.client.port, folder=tmp_path)
    with Pillow.open(tmp_path / "result.png") as picture:
        assert (picture.format, picture.getpixel((0, 0))) == ("PNG", tuple(paint(42)))


def test_the_concurrency_script_counts_pictures(form: Served, tmp_path: Path) -> None:
    """It is what people run to see several edits at once; it must notice when one failed."""
    given = {"BASE_URL": f"http://127.0.0.1:{form.client.port}", "OUT": str(tmp_path), "REQUESTS": "3"}
    command = [str(ROOT / "deploy/concurrency_test.sh")]

    def run(**more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, env=os.environ | given | more, capture_output=True, text=True, timeout=60
        )

    done = run()
    assert done.returncode == 0, done.stderr
    assert "3 of 3" in done.stdout
    with Pillow.open(tmp_path / "3.png") as picture:
        assert picture.getpixel((0, 0)) == tuple(paint(3))
    assert run(IMAGE_PATH=command[0]).returncode == 1
