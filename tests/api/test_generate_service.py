"""The text-to-image server's contract: pictures as data URIs, their making as events, LoRAs over them."""

import base64
import http.client
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from api.dialect import ApiOptions
from batching.mux import BatchMux, BatchPolicy
from core.catalog import Catalog
from core.errors import CapacityError, ExecutionError, OutOfDeviceMemory
from core.request import InferenceRequest
from core.service import port
from pipelines.registry import catalog
from tests.api.printed_lines import printed
from tests.api.serving import ARTIST, INSIDE, PAINTER, Answer, Served, paint, serving
from tests.serverless.painting import IMAGINING, POISON, PaintingPipeline

# The default only edits: the paths find the one that makes pictures of texts.
ROWS = Catalog([PAINTER, ARTIST], default="painter")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving(ApiOptions(max_queue=50), catalog=ROWS) as running:
        yield running


@pytest.fixture
def own() -> Iterator[Served]:
    """For tests that load LoRAs or shut gates."""
    with serving(catalog=ROWS) as running:
        yield running


def post(server: Served, path: str, body: object) -> Answer:
    return server.client.request("POST", path, json.dumps(body).encode())


def generate(server: Served, **wishes: object) -> Answer:
    return post(server, "/generate", {"prompt": "p", **wishes})


def asked(server: Served, **wishes: object) -> InferenceRequest:
    while not server.painter.entered.empty():
        server.painter.entered.get()
    answer = generate(server, **wishes)
    assert answer.status == 200, answer.body
    return server.painter.entered.get(timeout=5)


@pytest.mark.parametrize("output_format", ["png", "jpeg"])
def test_a_picture_is_answered_as_a_data_uri(output_format: Any) -> None:
    """In the format the operator chose, with what it took."""
    with serving(ApiOptions(output_format=output_format), catalog=ROWS) as running:
        body = generate(running, width=264, height=256, seed=1234).json()
    start, _, digits = body.pop("image_base64").partition(",")
    assert start == f"data:image/{output_format};base64"
    with Pillow.open(io.BytesIO(base64.b64decode(digits, validate=True))) as picture:
        assert (picture.format, picture.size) == (output_format.upper(), (264, 256))
        if output_format == "png":
            assert picture.getpixel((0, 0)) == tuple(paint(1234))
    assert body == {
        "seed": 1234,
        "generation_time_ms": 1500,
        "queue_wait_ms": 250,
        "width": 264,
        "height": 256,
        "image_id": None,
    }


def test_what_is_not_sent_has_the_contracts_defaults(server: Served) -> None:
    """A square of 1024 and nine steps; a random seed, also for -1."""
    request = asked(server, seed=-1)
    assert (request.model, request.size, request.steps) == ("artist", (1024, 1024), 9)
    assert 0 <= request.seed < 2**32
    assert request.cfg == ARTIST.cfg
    assert request.negative_prompt == ARTIST.negative_prompt


def test_a_distilled_model_keeps_its_own_steps() -> None:
    """Nine steps of a model made for four are four wasted and a worse picture."""
    with serving(catalog=catalog("sdxl-lightning")) as running:
        assert asked(running).steps == 4


def test_what_is_sent_is_kept(server: Served) -> None:
    """More steps than the first server took, too: other models need them."""
    request = asked(
        server,
        prompt=" p ",
        negative_prompt="blur",
        width=256,
        height=2048,
        seed=7,
        num_inference_steps=50,
        guidance_scale=0.0,
    )
    assert (request.prompt, request.negative_prompt, request.size) == (" p ", "blur", (256, 2048))
    assert (request.seed, request.steps, request.cfg) == (7, 50, 0.0)


@pytest.mark.parametrize(
    ("wishes", "place"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 2001}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"negative_prompt": "x" * 2001}, "negative_prompt"),
        ({"width": 255}, "width"),
        ({"height": 2049}, "height"),
        ({"seed": -2}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 101}, "num_inference_steps"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"guidance_scale": "high"}, "guidance_scale"),
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/generate-stream"])
def test_limits_are_kept(path: str, wishes: dict[str, object], place: str, server: Served) -> None:
    """Before a stream begins, so that the status says it."""
    answer = post(server, path, {"prompt": "p", **wishes})
    assert answer.status == 422
    assert answer.json()["detail"][0]["loc"] == ["body", place]


def test_a_models_own_limit_has_the_contracts_word() -> None:
    """``steps`` is nothing that its callers ever sent."""
    short = replace(ARTIST, max_steps=8)
    with serving(catalog=Catalog([short], short.name)) as running:
        assert asked(running).steps == 8
        (fault,) = generate(running, num_inference_steps=9).json()["detail"]
    assert fault["loc"] == ["body", "num_inference_steps"]
    assert fault["msg"].startswith("num_inference_steps 9")


def test_a_misspelt_field_is_named(server: Served) -> None:
    """Else a picture would come that nobody asked for."""
    answer = generate(server, num_inference_step=4)
    assert (answer.status, answer.json()["code"]) == (422, "unknown_field")
    assert "did you mean 'num_inference_steps'?" in answer.json()["error"]


def test_without_a_model_for_it_it_says_so() -> None:
    """And what an operator can do."""
    with serving(catalog=Catalog([PAINTER], "painter")) as running:
        answer = generate(running)
    assert answer.status == 404
    assert "ALLOWED_MODELS" in answer.json()["detail"]


FULL = "Request queue is full (max 50). Please try again later."


@pytest.mark.parametrize(
    ("fault", "status", "detail"),
    [
        (CapacityError("queue_full", "50 wait", retry_after=3), 503, FULL),
        (ExecutionError("deadline_exceeded", "late"), 504, "Generation timed out"),
        (ExecutionError("pipeline_error", "broke"), 500, "Image generation failed"),
        (KeyError("/home/secret.py"), 500, "Image generation failed"),
        (OutOfDeviceMemory("no room"), 503, "no room"),
    ],
)
def test_failures_have_their_sentences(fault: Exception, status: int, detail: str, server: Served) -> None:
    """As one text in ``detail``, with nothing of ours in it."""
    server.painter.fault = fault
    try:
        answer = generate(server)
    finally:
        server.painter.fault = None
    assert (answer.status, answer.json()["detail"]) == (status, detail)
    assert not INSIDE.search(answer.body)
    assert answer.headers.get("retry-after") == ("3" if detail == FULL else None)


# Events, with a real mux under the server.

TINY = Catalog([replace(IMAGINING, steps=4)], default=IMAGINING.name)


@pytest.fixture(scope="module")
def muxed() -> Iterator[tuple[Served, PaintingPipeline]]:
    pipeline = PaintingPipeline(0.05)
    with (
        BatchMux(lambda model: pipeline, BatchPolicy(max_batch_size=1)) as mux,
        serving(catalog=TINY, submit=port(mux.submit), progress=mux.progress) as running,
    ):
        yield running, pipeline


WISH = {"prompt": "p", "width": 256, "height": 256, "num_inference_steps": 4}


def events(server: Served, **wishes: object) -> tuple[Answer, list[dict[str, Any]]]:
    answer = post(server, "/generate-stream", WISH | wishes)
    assert answer.status == 200, answer.body
    lines = answer.body.decode().split("\n\n")
    assert lines.pop() == ""
    said = [line for line in lines if not line.startswith(":")]
    assert all(line.startswith("data: ") for line in said)
    return answer, [json.loads(line.removeprefix("data: ")) for line in said]


def test_the_making_of_a_picture_is_told_from_its_place_to_its_end(
    muxed: tuple[Served, PaintingPipeline],
) -> None:
    """All that a page with a progress bar reads, in order, unbuffered by proxies."""
    answer, told = events(muxed[0], seed=11)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
    request_id = answer.headers["x-request-id"]
    assert told[0] == {"type": "queued", "queue_position": 0, "request_id": request_id}
    steps = [event for event in told if event["type"] == "progress"]
    assert steps == [
        {"type": "progress", "step": n, "total_steps": 4, "progress": 25 * n} for n in (1, 2, 3, 4)
    ]
    last = told[-1]
    assert last["type"] == "complete"
    assert last.keys() - {"type"} == post(muxed[0], "/generate", WISH).json().keys()
    assert last["image_base64"].startswith("data:image/png;base64,")
    assert last["seed"] == 11


def test_a_place_in_the_queue_is_told(muxed: tuple[Served, PaintingPipeline]) -> None:
    """Whoever comes while one picture is made and another waits is told so."""
    with ThreadPoolExecutor(4) as pool:
        told = [
            future.result()[1]
            for future in [pool.submit(events, muxed[0], num_inference_steps=8) for _ in range(4)]
        ]
    places = {event["queue_position"] for one in told for event in one if event["type"] == "queued"}
    assert places > {0}
    assert all(one[0]["type"] == "queued" and one[-1]["type"] == "complete" for one in told)


def test_a_failure_is_the_last_event(muxed: tuple[Served, PaintingPipeline]) -> None:
    """The status is long sent; the sentence is the one a caller without a stream gets."""
    _, told = events(muxed[0], prompt=POISON)
    assert told[-1] == {"type": "error", "message": "Image generation failed"}


def test_a_full_queue_is_a_status_also_for_a_stream(server: Served) -> None:
    """Nothing has begun, so nothing need be streamed."""
    server.painter.refusal = CapacityError("queue_full", "50 wait")
    try:
        answer = post(server, "/generate-stream", {"prompt": "p"})
    finally:
        server.painter.refusal = None
    assert (answer.status, answer.json()["detail"]) == (503, FULL)


def test_a_page_that_is_closed_costs_nothing_more(own: Served) -> None:
    """Its job is cancelled, and the LoRAs are free again."""
    own.painter.shut()
    connection = http.client.HTTPConnection("127.0.0.1", own.client.port, timeout=20)
    connection.request("POST", "/generate-stream", json.dumps({"prompt": "p"}))
    response = connection.getresponse()
    assert json.loads(response.readline().removeprefix(b"data: "))["type"] == "queued"
    assert post(own, "/lora/load", {"path": "comic"}).status == 409
    response.close()
    connection.close()
    assert own.painter.cancelled.get(timeout=10)
    for _ in range(200):  # the server ends the stream a moment later
        if post(own, "/lora/load", {"path": "comic"}).status == 200:
            break
    else:
        raise AssertionError("the LoRAs stay in use")


# LoRAs.


def test_a_loaded_lora_is_over_every_picture_until_it_is_unloaded(own: Served) -> None:
    """Of these paths; a request of another dialect names its own."""
    assert own.client.get("/lora/list").json() == {"available": ["comic", "pencil"], "loaded": []}
    loaded = post(own, "/lora/load", {"path": "comic"}).json()["loaded"]
    assert loaded == [{"adapter_name": "comic", "path": "comic", "strength": 0.8}]
    post(own, "/lora/load", {"path": "loras/pencil.safetensors", "strength": 2, "adapter_name": "mine"})
    assert asked(own).adapters == (("comic", 0.8), ("pencil", 2.0))
    assert post(own, "/lora/set-strength", {"adapter_name": "mine", "strength": 0.5}).status == 200
    assert asked(own).adapters == (("comic", 0.8), ("pencil", 0.5))
    own.client.run({"prompt": "p", "model": "artist"})
    assert own.painter.entered.get(timeout=5).adapters == ()
    post(own, "/lora/set-strength", {"strength": 0})
    assert asked(own).adapters == ()
    assert [lora["strength"] for lora in own.client.get("/lora/list").json()["loaded"]] == [0, 0]
    post(own, "/lora/unload", {"adapter_name": "mine"})
    assert [lora["path"] for lora in own.client.get("/lora/list").json()["loaded"]] == ["comic"]
    assert own.client.request("POST", "/lora/unload").json()["loaded"] == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("load", {"path": "unknown"}, 404),
        ("load", {"path": "../../etc/passwd"}, 404),
        ("load", {"path": "comic", "strength": 2.1}, 422),
        ("load", {"path": "comic", "strength": -0.1}, 422),
        ("load", {}, 422),
        ("load", {"path": "comic", "name": "x"}, 422),
        ("load", {"path": "comic", "adapter_name": "twice"}, 422),
        ("unload", {"adapter_name": "pencil"}, 404),
        ("set-strength", {"adapter_name": "pencil", "strength": 1}, 404),
        ("set-strength", {"adapter_name": "comic"}, 422),
    ],
)
def test_a_wrong_change_changes_nothing(path: str, body: object, status: int, own: Served) -> None:
    """Also one that every picture after it would have been refused for."""
    assert post(own, "/lora/load", {"path": "comic"}).status == 200
    answer = post(own, f"/lora/{path}", body)
    assert answer.status == status, answer.body
    assert answer.json()["detail"]
    assert len(own.client.get("/lora/list").json()["loaded"]) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [("load", {"path": "pencil"}), ("unload", {}), ("set-strength", {"strength": 1})],
)
def test_loras_stay_while_a_picture_is_made(path: str, body: object, own: Served) -> None:
    """Its caller asked for it as they were; the list can be read at any time."""
    post(own, "/lora/load", {"path": "comic"})
    own.painter.shut()
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(generate, own)
        own.painter.entered.get(timeout=5)
        answer = post(own, f"/lora/{path}", body)
        assert len(own.client.get("/lora/list").json()["loaded"]) == 1
        own.painter.open()
        assert making.result(timeout=10).status == 200
    assert (answer.status, answer.json()["code"]) == (409, "conflict")
    assert post(own, f"/lora/{path}", body).status == 200


def test_its_printed_command_lines_work(server: Served, tmp_path: Path) -> None:
    """People begin by pasting them."""
    body = json.loads(printed("gateway-generate", server.client.port, folder=tmp_path))
    assert (body["width"], body["height"]) == (1024, 1024)
    assert body["image_base64"].startswith("data:image/png;base64,")
    for name in ("gateway-health", "server-health"):
        assert json.loads(printed(name, server.client.port, folder=tmp_path))["status"]
