"""The SDXL service's contract: its texts, its defaults, its answers, and its printed command lines."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from api.dialect import ApiOptions
from api.files import FileOptions
from core.catalog import Catalog
from core.errors import CapacityError, ExecutionError, OutOfDeviceMemory
from core.request import InferenceRequest
from pipelines.registry import catalog
from tests.api.printed_lines import printed
from tests.api.serving import INSIDE, Answer, Served, paint, serving
from tests.api.test_files import FullDisk

ROWS = catalog("sdxl-turbo", allowed=frozenset({"sdxl-lightning", "qwen-image-edit", "pocket-sdxl"}))


class Memory:
    """Two loaded models."""

    def __init__(self) -> None:
        self.loaded = ["stabilityai/sdxl-turbo", "stabilityai/sdxl-lightning"]

    async def __call__(self, name: str | None) -> tuple[int, int]:
        before = len(self.loaded)
        self.loaded = [other for other in self.loaded if name is not None and other != name]
        return before - len(self.loaded), len(self.loaded)


@pytest.fixture(scope="module")
def sdxl() -> Iterator[Served]:
    with serving(ApiOptions(generation_timeout=30), catalog=ROWS) as running:
        yield running


def generate(sdxl: Served, body: object) -> Answer:
    return sdxl.client.request("POST", "/v1/generate", json.dumps(body).encode())


def asked(sdxl: Served, body: object) -> InferenceRequest:
    while not sdxl.painter.entered.empty():
        sdxl.painter.entered.get()
    answer = generate(sdxl, body)
    assert answer.status == 200, answer.body
    return sdxl.painter.entered.get(timeout=5)


def test_a_picture_is_answered_as_a_url(sdxl: Served) -> None:
    """Every field as its clients read it; strings throughout the audit."""
    answer = generate(sdxl, {"prompt": "a corgi", "params": {"width": 72, "height": 64, "seed": 1234}})
    body = answer.json()
    (image,) = body["images"]
    assert body | {"images": [], "audit": {}} == {
        "status": "completed",
        "images": [],
        "audit": {},
        "error": None,
    }
    assert image["url"] == f"/files/{image['image_id']}.png"
    assert image["image_id"].startswith("im_")
    assert image["seed"] == 1234
    audit = body["audit"]
    assert (audit["policy"], audit["model"]) == ("standard", "stabilityai/sdxl-turbo")
    assert float(audit["duration_sec"]) >= 0
    assert len(audit["duration_sec"].partition(".")[2]) == 3
    assert (answer.headers["x-seed"], answer.headers["x-model"]) == ("1234", "sdxl-turbo")
    with Pillow.open(io.BytesIO(sdxl.client.get(image["url"]).body)) as picture:
        assert (picture.size, picture.getpixel((0, 0))) == ((72, 64), tuple(paint(1234)))


def test_the_address_is_put_before_the_url(tmp_path: Path) -> None:
    """Where pictures are fetched through a proxy under another name."""
    files = FileOptions(folder=tmp_path, base_url="https://pictures.example")
    with serving(catalog=ROWS, files=files) as running:
        (image,) = generate(running, {"prompt": "p"}).json()["images"]
    assert image["url"] == f"https://pictures.example/files/{image['image_id']}.png"


def test_what_is_not_sent_is_the_models_own(sdxl: Served) -> None:
    """25 steps and guidance would spoil a model that was distilled for one unguided step."""
    request = asked(sdxl, {"prompt": "p"})
    assert (request.size, request.steps, request.cfg) == ((512, 512), 1, 0.0)
    assert request.negative_prompt == "low quality, bad anatomy, nsfw, watermark"
    assert request.timeout == 30
    other = asked(sdxl, {"prompt": "p", "params": {"model": "stabilityai/sdxl-lightning"}})
    assert (other.model, other.size, other.steps) == ("sdxl-lightning", (1024, 1024), 4)
    assert request.seed != other.seed


def test_what_is_sent_is_kept(sdxl: Served) -> None:
    """Word for word, also the fields that change nothing."""
    request = asked(
        sdxl,
        {
            "prompt": " p ",
            "negative_prompt": "",
            "params": {"width": 1024, "height": 768, "steps": 25, "cfg": 7.5, "seed": 7, "model": None},
            "safety": {"allow_mature_implicit": False},
            "metada": {"project_id": "a", "agent_id": None},
        },
    )
    assert (request.prompt, request.negative_prompt) == (" p ", "")
    assert (request.size, request.steps, request.cfg, request.seed) == ((1024, 768), 25, 7.5, 7)


def test_the_model_of_the_answer_is_the_callers_word(sdxl: Served) -> None:
    """A client compares it with what it asked for."""
    name = "stabilityai/sdxl-lightning"
    assert generate(sdxl, {"prompt": "p", "params": {"model": name}}).json()["audit"]["model"] == name


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"prompt": "  "}, "Prompt cannot be empty"),
        ({"prompt": "p", "params": {"width": 100}}, "Width and height must be multiples of 8"),
        ({"prompt": "p", "params": {"height": 1023}}, "Width and height must be multiples of 8"),
        ({"prompt": "p", "params": {"model": "org/other"}}, "Model 'org/other' not allowed"),
        ({"prompt": "p", "params": {"model": "qwen-image-edit"}}, "Model 'qwen-image-edit' not allowed"),
        ({"prompt": "p", "params": {"model": "<b>\n\u202e"}}, "Model '?b???' not allowed"),
        ({"prompt": "p", "params": {"model": "pocket-sdxl", "width": 512}}, "Max size is 256x256"),
    ],
)
def test_rules_are_refused_with_400_and_their_texts(body: object, text: str, sdxl: Served) -> None:
    """Clients show them, and tell them by the status."""
    answer = generate(sdxl, body)
    assert (answer.status, answer.json()["detail"]) == (400, text)


def test_a_models_own_limits_are_rules_too() -> None:
    """By the same text where there is one."""
    short = replace(ROWS.get("sdxl-turbo"), max_steps=8, max_cfg=2.0, max_aspect=2.0)
    with serving(catalog=Catalog([short], short.name)) as running:
        for params in ({"steps": 9}, {"cfg": 3}):
            answer = generate(running, {"prompt": "p", "params": params})
            assert (answer.status, answer.json()["detail"]) == (400, "Steps/CFG exceed allowed limits")
        answer = generate(running, {"prompt": "p", "params": {"width": 2048, "height": 64}})
        assert answer.status == 400
        assert "2:1" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, ["body", "prompt"]),
        ({"prompt": 7}, ["body", "prompt"]),
        ({"prompt": "p", "params": {"width": 2056}}, ["body", "params", "width"]),
        ({"prompt": "p", "params": {"height": 56}}, ["body", "params", "height"]),
        ({"prompt": "p", "params": {"steps": 101}}, ["body", "params", "steps"]),
        ({"prompt": "p", "params": {"steps": 0}}, ["body", "params", "steps"]),
        ({"prompt": "p", "params": {"cfg": 20.5}}, ["body", "params", "cfg"]),
        ({"prompt": "p", "params": {"seed": -2}}, ["body", "params", "seed"]),
        ({"prompt": "p", "params": {"model": "m" * 201}}, ["body", "params", "model"]),
        ({"prompt": "p", "params": []}, ["body", "params"]),
        ({"prompt": "x" * 5000}, ["body", "prompt"]),
        ([], ["body"]),
    ],
)
def test_ranges_and_kinds_are_refused_with_422_and_their_place(
    body: object, place: list[str], sdxl: Served
) -> None:
    """As FastAPI words it, without the caller's input."""
    answer = generate(sdxl, body)
    assert answer.status == 422
    (fault,) = answer.json()["detail"]
    assert fault["loc"] == place
    assert fault.keys() == {"type", "loc", "msg"}


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ({"prompt": "p", "negativ_prompt": "x"}, "did you mean 'negative_prompt'?"),
        ({"prompt": "p", "params": {"step": 3}}, "did you mean 'steps'?"),
        ({"prompt": "p", "metadata": {"project": 3}}, "did you mean 'project_id'?"),
    ],
)
def test_a_misspelt_field_is_named(body: object, hint: str, sdxl: Served) -> None:
    """Else a picture would come that nobody asked for."""
    answer = generate(sdxl, body)
    assert (answer.status, answer.json()["code"]) == (422, "unknown_field")
    assert hint in answer.json()["error"]


@pytest.mark.parametrize(
    ("fault", "status", "text"),
    [
        (ExecutionError("deadline_exceeded", "late"), 504, "Generation timeout exceeded"),
        (ExecutionError("pipeline_error", "broke"), 500, "Internal generation error"),
        (KeyError("/home/secret.py"), 500, "Internal generation error"),
        (OutOfDeviceMemory("no room"), 503, "no room"),
        (CapacityError("queue_full", "256 wait"), 429, "256 wait"),
    ],
)
def test_failures_have_their_texts(fault: Exception, status: int, text: str, sdxl: Served) -> None:
    """And nothing of ours shows."""
    sdxl.painter.fault = fault
    try:
        answer = generate(sdxl, {"prompt": "p"})
    finally:
        sdxl.painter.fault = None
    assert (answer.status, answer.json()["detail"]) == (status, text)
    assert not INSIDE.search(answer.body)
    assert ("retry-after" in answer.headers) == (status == 429)


def test_a_full_disk_is_said_so(tmp_path: Path) -> None:
    """The picture was made and cannot be kept: that is no fault of the request."""
    with serving(catalog=ROWS, files=FullDisk(FileOptions(folder=tmp_path))) as running:
        assert generate(running, {"prompt": "p"}).status == 507


def test_old_jobs_are_gone(sdxl: Served) -> None:
    """Clients of the asynchronous form are told what happened to it."""
    answer = sdxl.client.get("/v1/jobs/abc-123")
    assert answer.status == 410
    assert answer.json()["detail"] == "Endpoint deprecated: generation is synchronous now"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (None, {"model_id": None, "removed": 2, "remaining": 0}),
        (b"{}", {"model_id": None, "removed": 2, "remaining": 0}),
        (
            b'{"model_id":"stabilityai/sdxl-turbo"}',
            {"model_id": "stabilityai/sdxl-turbo", "removed": 1, "remaining": 1},
        ),
        (b'{"model_id":"other"}', {"model_id": "other", "removed": 0, "remaining": 2}),
    ],
)
def test_models_are_thrown_out(body: bytes | None, expected: dict[str, Any]) -> None:
    """With a body or without; a second time there is nothing left to throw out."""
    with serving(catalog=ROWS, purge=Memory()) as running:
        answer = running.client.request("POST", "/v1/models/purge", body)
        assert (answer.status, answer.json()) == (200, expected)
        running.client.request("POST", "/v1/models/purge")
        again = running.client.request("POST", "/v1/models/purge").json()
    assert again == {"model_id": None, "removed": 0, "remaining": 0, "note": "cache empty"}


@pytest.mark.parametrize("body", [b"{", b'{"model":"x"}', b"[]", b'{"model_id":3}'])
def test_a_wrong_purge_throws_nothing_out(body: bytes, sdxl: Served) -> None:
    """A misspelt field must not mean all models."""
    memory = Memory()
    with serving(catalog=ROWS, purge=memory) as running:
        assert running.client.request("POST", "/v1/models/purge", body).status in (400, 422)
    assert len(memory.loaded) == 2


@pytest.mark.parametrize(
    ("fault", "status"),
    [(CapacityError("shutting_down", "bye"), 503), (KeyError("/home/secret.py"), 500)],
)
def test_a_purge_that_fails_is_answered(fault: Exception, status: int) -> None:
    """In the same words as everything here."""

    async def purge(name: str | None) -> tuple[int, int]:
        raise fault

    with serving(catalog=ROWS, purge=purge) as running:
        answer = running.client.request("POST", "/v1/models/purge")
    assert answer.status == status
    assert isinstance(answer.json()["detail"], str)
    assert not INSIDE.search(answer.body)


@pytest.mark.parametrize("name", ["sdxl-generate", "sdxl-generate-model", "sdxl-generate-key"])
def test_its_printed_command_lines_make_pictures(name: str, sdxl: Served, tmp_path: Path) -> None:
    """People begin by pasting them."""
    answer = json.loads(printed(name, sdxl.client.port, folder=tmp_path))
    assert answer["status"] == "completed"


@pytest.mark.parametrize(("name", "removed"), [("sdxl-purge", 2), ("sdxl-purge-one", 1)])
def test_its_printed_command_lines_purge(name: str, removed: int, tmp_path: Path) -> None:
    """With and without a body."""
    with serving(catalog=ROWS, purge=Memory()) as running:
        assert json.loads(printed(name, running.client.port, folder=tmp_path))["removed"] == removed


@pytest.mark.parametrize(
    ("safety", "place"),
    [
        ({"allow_mature": True}, ["body", "safety"]),
        ({"allow_mature_implicit": "yes"}, ["body", "safety", "allow_mature_implicit"]),
        ({"allow_mature_implicit": 1}, ["body", "safety", "allow_mature_implicit"]),
    ],
)
def test_what_safety_cannot_mean_is_refused(
    sdxl: Served, safety: dict[str, object], place: list[str]
) -> None:
    """A wish about safety that was misread in silence would be worse than none."""
    answer = generate(sdxl, {"prompt": "p", "safety": safety})
    assert answer.status == 422
    (fault,) = answer.json()["detail"]
    assert fault["loc"] == place
