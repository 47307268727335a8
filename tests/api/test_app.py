"""Routes, probes and their documentation, over real HTTP."""

import asyncio
import io
import json
import logging
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image as Pillow

from api.budget import Lease
from api.intake import ImageIntake, IntakeOptions
from core.catalog import Catalog
from core.errors import CapacityError, DeviceLost, ExecutionError, OutOfDeviceMemory, ServingError
from tests.api.findings import SEERS, VISION
from tests.api.serving import ARTIST, Answer, Served, paint, png, serving, text

WISHES = {"prompt": " Make it *pop* ", "image_base64": text(png()), "seed": 1234, "width": 96, "height": 64}


@pytest.mark.parametrize("path", ["/run", "/runsync"])
def test_both_paths_answer_flat_with_figures(path: str, served: Served) -> None:
    """The contract of the first clients, with what every image answer carries."""
    answer = served.client.run(WISHES, path)
    assert answer.status == 200
    body = answer.json()
    assert body["prompt"] == " Make it *pop* "
    assert (body["num_inference_steps"], body["lightning_enabled"], body["seed"]) == (40, False, 1234)
    assert answer.picture().getpixel((0, 0)) == tuple(paint(1234))
    assert answer.picture().size == (96, 64)
    assert answer.headers["content-type"] == "application/json"
    figures = {"x-seed": "1234", "x-model": "painter", "x-queue-ms": "250.0", "x-inference-ms": "1500.0"}
    assert (figures | {"x-batch-size": "3"}).items() <= answer.headers.items()


@pytest.mark.parametrize("path", ["/run", "/runsync"])
def test_both_paths_make_a_picture_of_a_text_alone(path: str, served: Served) -> None:
    """The same answer as an edit's, so the same client reads it."""
    wishes = {"prompt": "a lighthouse", "model": "artist", "seed": 99, "width": 100, "height": 70}
    answer = served.client.run(wishes, path)
    assert answer.status == 200
    assert answer.json().keys() == served.client.run(WISHES, path).json().keys()
    assert (answer.json()["prompt"], answer.json()["model"]) == ("a lighthouse", "artist")
    assert (answer.picture().size, answer.picture().getpixel((0, 0))) == ((100, 70), tuple(paint(99)))


def test_the_paths_take_masks_and_loras(served: Served) -> None:
    """Through the strict reader of bodies, where long texts and small objects take different ways."""
    mask = text(png(mode="L", colour=(255,)))
    wishes = WISHES | {"model": "artist", "mask": mask, "loras": [{"id": "comic", "scale": 0.5}]}
    while not served.painter.entered.empty():
        served.painter.entered.get()
    assert served.client.run(wishes).status == 200
    request = served.painter.entered.get(timeout=5)
    assert request.mask is not None
    assert request.adapters == (("comic", 0.5),)
    refused = served.client.run(wishes | {"loras": [{"id": "comic", "weight": 0.5}]})
    assert (refused.status, refused.json()["code"], refused.json()["param"]) == (
        422,
        "unknown_field",
        "loras.0",
    )


def test_a_full_queue_refuses_before_the_body_is_read(served: Served) -> None:
    """Overload must cost nothing: here the body never comes, and the answer does."""
    served.painter.refusal = CapacityError("queue_full", "256 requests wait", retry_after=3)
    try:
        with served.client.socket() as caller:
            caller.sendall(b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
            assert caller.recv(4096).startswith(b"HTTP/1.1 429 ")
    finally:
        served.painter.refusal = None


@pytest.mark.parametrize("declared", ["application/x-www-form-urlencoded", "text/plain", "image/png"])
def test_the_declared_content_type_is_not_asked(declared: str, served: Served) -> None:
    """curl -d declares a form."""
    assert served.client.run(WISHES, headers={"Content-Type": declared}).status == 200


def test_a_callers_id_comes_back_and_the_jobs_own_differs(served: Served) -> None:
    """Two callers may choose the same id; jobs must not meet because of it."""
    ids = set()
    for _ in range(2):
        assert (
            served.client.run(WISHES, headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
        )
        while not served.painter.entered.empty():
            ids.add(served.painter.entered.get().id)
    assert len(ids) >= 2
    assert "mine-1" not in ids


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "<script>", "a\u00e9"])
def test_an_id_that_could_do_harm_is_replaced(sent: str, served: Served) -> None:
    """It would stand in a header and in the log."""
    shown = served.client.run(WISHES, headers={"X-Request-Id": sent}).headers["x-request-id"]
    assert shown != sent
    assert shown.isalnum()


def test_work_is_accepted_while_the_model_loads(fresh: Served) -> None:
    """It waits for the model within its deadline; a cold start must not cost the first callers an error."""
    fresh.probe.say("loading")
    assert fresh.client.run(WISHES).status == 200


def test_a_failed_model_says_how_to_mend_it(fresh: Served) -> None:
    """One sentence for a person, and no attempt."""
    fresh.probe.say("failed", "there is no GPU here; set DEFAULT_MODEL=painter", retry_after=None)
    answer = fresh.client.run(WISHES)
    assert (answer.status, answer.json()["code"]) == (503, "not_ready")
    assert "DEFAULT_MODEL=painter" in answer.json()["detail"]
    assert fresh.painter.entered.empty()
    assert answer.headers["x-should-retry"] == "false"  # it takes a person
    assert not {"retry-after"} & (answer.headers.keys() | fresh.client.get("/ready").headers.keys())


def test_a_failure_that_may_pass_says_when_to_come_back(fresh: Served) -> None:
    """The load is tried again after a while."""
    fresh.probe.say("failed", "the download broke off", retry_after=17.2)
    for answer in (fresh.client.run(WISHES), fresh.client.get("/ready")):
        assert (answer.status, answer.headers["retry-after"]) == (503, "18")


def test_a_draining_server_sends_callers_on(fresh: Served) -> None:
    """With Retry-After, so that a balancer's retry finds another one."""
    fresh.probe.say("draining")
    answer = fresh.client.run(WISHES)
    assert (answer.status, answer.json()["code"]) == (503, "shutting_down")
    assert "retry-after" in answer.headers


@pytest.mark.parametrize(
    ("fault", "status", "header"),
    [
        (CapacityError("queue_full", "full", retry_after=7.5), 429, ("retry-after", "8")),
        (OutOfDeviceMemory(), 503, ("x-should-retry", "false")),
        (ExecutionError("deadline_exceeded", "late"), 504, ("x-should-retry", "false")),
        (DeviceLost(), 503, ("retry-after", "5")),
        (
            CapacityError("not_ready", "no GPU", retry_after=9, retryable=False),
            503,
            ("x-should-retry", "false"),
        ),
        (ExecutionError("pipeline_error", "broken"), 500, ("content-type", "application/json")),
    ],
)
def test_a_failed_job_answers_by_the_table(
    fault: ServingError, status: int, header: tuple[str, str], fresh: Served
) -> None:
    """Code, status and headers of the error that ``submit`` raised."""
    fresh.painter.fault = fault
    answer = fresh.client.run(WISHES)
    assert (answer.status, answer.json()["code"], answer.json()["error"]) == (
        status,
        fault.code,
        fault.message,
    )
    assert answer.headers[header[0]] == header[1]


def test_a_fault_nobody_foresaw_is_opaque_outside_and_logged_inside(
    fresh: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """Tracebacks hold paths; the log is where they help."""
    fresh.painter.fault = KeyError("/secret/path")
    answer = fresh.client.run(WISHES)
    assert (answer.status, answer.json()["code"]) == (500, "pipeline_error")
    assert b"secret" not in answer.body
    assert "KeyError" in caplog.text
    assert fresh.client.get("/health").status == 200


def test_one_line_is_logged_per_request_without_the_prompt(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """Prompts and pictures are the callers' own business."""
    with caplog.at_level(logging.INFO, "batchmux.api"):
        served.client.run(WISHES, headers={"X-Request-Id": "line-1"})
    lines = [record.getMessage() for record in caplog.records if "line-1" in record.getMessage()]
    assert len(lines) == 1
    assert "status=200" in lines[0]
    assert "pop" not in caplog.text
    assert text(png())[:20] not in caplog.text


def post(client_socket: socket.socket, wishes: object) -> None:
    body = json.dumps({"input": wishes}).encode()
    client_socket.sendall(b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def test_a_caller_who_leaves_cancels_the_job(fresh: Served) -> None:
    """The GPU must not work for nobody."""
    fresh.painter.shut()
    with fresh.client.socket() as leaving:
        post(leaving, WISHES)
        job = fresh.painter.entered.get(timeout=5)
    assert fresh.painter.cancelled.get(timeout=5) == job.id
    fresh.painter.open()
    assert fresh.client.run(WISHES).status == 200


class NeverArrives:
    """A fetch that only a cancel ends."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.cancelled = threading.Event()

    async def __call__(self, url: str, lease: Lease) -> bytes:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return b""


def test_a_caller_who_leaves_cancels_the_download_too() -> None:
    """It is work like any other."""
    fetch = NeverArrives()
    with serving(intake=ImageIntake(IntakeOptions(), fetch)) as running:
        with running.client.socket() as leaving:
            post(leaving, {"prompt": "p", "image_url": "https://a.example/"})
            assert fetch.started.wait(5)
        assert fetch.cancelled.wait(5)


def test_callers_do_not_wait_for_each_other(fresh: Served) -> None:
    """Each gets the picture of its own seed, whatever order they finish in."""
    answers: dict[int, Answer] = {}

    def call(seed: int) -> None:
        answers[seed] = fresh.client.run(WISHES | {"seed": seed, "prompt": f"p{seed}"})

    fresh.painter.shut()
    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(20)]
    for caller in callers:
        caller.start()
    for _ in callers:
        fresh.painter.entered.get(timeout=10)
    fresh.painter.open()
    for caller in callers:
        caller.join(10)
    for seed, answer in answers.items():
        assert answer.json()["prompt"] == f"p{seed}"
        assert answer.picture().getpixel((0, 0)) == tuple(paint(seed))
    assert len(answers) == 20


@pytest.mark.parametrize(
    ("state", "health", "live", "ready", "ping"),
    [
        ("loading", 200, 200, 503, 204),
        ("ready", 200, 200, 200, 200),
        ("draining", 200, 200, 503, 503),
        ("failed", 200, 200, 503, 503),
    ],
)
def test_probes_tell_the_state(
    state: str, health: int, live: int, ready: int, ping: int, served: Served
) -> None:
    """204 is what RunPod's load balancer takes for "initializing"."""
    served.probe.say(state, "why")
    try:
        statuses = tuple(served.client.get(path).status for path in ("/health", "/live", "/ready", "/ping"))
        body = served.client.get("/health").json()
    finally:
        served.probe.say("ready")
    assert statuses == (health, live, ready, ping)
    assert (body["status"], body["gpu_available"], body["detail"]) == (state, True, "why")


@pytest.mark.parametrize("path", ["/", "/health", "/live", "/ready", "/ping", "/docs", "/openapi.json"])
def test_a_probe_may_ask_for_the_head_alone(path: str, served: Served) -> None:
    """Some balancers and monitors do."""
    head, full = served.client.request("HEAD", path), served.client.get(path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(full.body))


def test_an_unknown_path_and_a_wrong_method_answer_in_our_form(served: Served) -> None:
    """A client reads the same keys everywhere."""
    missing, wrong = served.client.get("/rum"), served.client.get("/run")
    assert (missing.status, missing.json()["code"]) == (404, "not_found")
    assert (wrong.status, wrong.json()["code"], wrong.headers["allow"]) == (405, "method_not_allowed", "POST")
    assert served.client.request("POST", "/run/", b"{}").status == 404


def test_the_documentation_documents(served: Served) -> None:
    """Every field of the request and the answer, and every status that the table can give there."""
    assert served.client.get("/docs").status == 200
    paths = served.client.get("/openapi.json").json()["paths"]
    healths = {"/health", "/firered/health", "/vision/health", "/sdxl/health"}
    assert set(paths) >= healths | {"/run", "/runsync", "/", "/live", "/ready", "/ping", "/metrics"}
    run = paths["/run"]["post"]
    schema = run["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "image_url", "image_base64_3", "mask", "loras", "timeout"} <= set(
        schema["properties"]["input"]["properties"]
    )
    assert {"200", "400", "401", "404", "408", "413", "415", "422", "429", "500", "503", "504"} == set(
        run["responses"]
    )
    assert set(paths["/ping"]["get"]["responses"]) == {"200", "204", "503"}
    assert served.client.get("/").json()["model"] == "painter"


def test_the_documented_example_is_understood(served: Served) -> None:
    """Copied from the page, it must fail on nothing but its picture's address."""
    run = served.client.get("/openapi.json").json()["paths"]["/run"]["post"]
    example = run["requestBody"]["content"]["application/json"]["example"]["input"]
    assert served.client.run(example | {"image_url": None, "image_base64": text(png())}).status == 200


def test_health_answers_while_a_batch_runs(fresh: Served) -> None:
    """The batch ends only after the answer, so it cannot have been waited for."""
    fresh.painter.shut()
    caller = threading.Thread(target=fresh.client.run, args=(WISHES,))
    caller.start()
    fresh.painter.entered.get(timeout=5)
    assert fresh.client.get("/health").status == 200
    fresh.painter.open()
    caller.join(5)


@pytest.mark.parametrize("channels", [3, 4])
def test_health_answers_while_large_pictures_are_decoded(served: Served, channels: int) -> None:
    """24 megapixels, once with an alpha channel: no reader may keep the interpreter to itself for long.
    The longest wait of a probe is held against the whole call, and the best of three rounds counts: the
    machine may be busy with something else."""
    ramp = np.add.outer(np.arange(4000), np.arange(6000)).astype(np.uint8)
    out = io.BytesIO()
    Pillow.fromarray(np.dstack([ramp] * channels)).save(out, "PNG", compress_level=1)
    assert min(_longest_wait(served, text(out.getvalue())) for _ in range(3)) < 0.25


def _longest_wait(served: Served, file: str) -> float:
    """For a probe during one call, as a part of that call's time."""
    answers: list[Answer] = []
    caller = threading.Thread(
        target=lambda: answers.append(served.client.run(WISHES | {"image_base64": file}))
    )
    began, waits = time.monotonic(), list[float]()
    caller.start()
    while not answers:
        asked = time.monotonic()
        assert served.client.get("/health").status == 200
        waits.append(time.monotonic() - asked)
    caller.join(10)
    assert answers[0].status == 200
    return max(waits) / (time.monotonic() - began)


PAINTING: dict[str, tuple[str, dict[str, object]]] = {
    "flat, edit": ("/run", {"input": {"prompt": "p", "image_base64": text(png())}}),
    "flat, generate": ("/runsync", {"input": {"prompt": "p"}}),
    "hub, generate": ("/hf/text-to-image", {"inputs": "p"}),
    "hub, edit": ("/hf/image-to-image", {"inputs": text(png()), "parameters": {"prompt": "p"}}),
    "web ui, generate": ("/sdapi/v1/txt2img", {"prompt": "p"}),
    "web ui, edit": ("/sdapi/v1/img2img", {"prompt": "p", "init_images": [text(png())]}),
    "openai": ("/v1/images/generations", {"prompt": "p"}),
    "first gateway": ("/generate", {"prompt": "p"}),
}


@pytest.mark.parametrize("name", PAINTING)
def test_a_default_that_only_looks_leaves_painting_to_the_others(name: str) -> None:
    """Clients of the first services name no model: which one is the default is not their concern."""
    path, body = PAINTING[name]
    headers = {"Content-Type": "application/json"}
    with serving(catalog=Catalog([*SEERS, ARTIST], default="cutter")) as running:
        answer = running.client.request("POST", path, json.dumps(body).encode(), headers)
        assert answer.status == 200, answer.body
        assert running.painter.entered.get(timeout=5).model == "artist"
    with serving(catalog=VISION) as running:
        answer = running.client.request("POST", path, json.dumps(body).encode(), headers)
        assert 400 <= answer.status < 500
        assert b"no model here can" in answer.body or b"cannot generate" in answer.body


def test_the_web_ui_offers_no_model_that_only_looks() -> None:
    """Chosen in a front end it could make no picture."""
    with serving(catalog=Catalog([*SEERS, ARTIST], default="cutter")) as running:
        models = running.client.request("GET", "/sdapi/v1/sd-models").json()
        assert [model["title"] for model in models] == ["artist"]
        assert running.client.request("GET", "/sdapi/v1/options").json()["sd_model_checkpoint"] == "artist"
    with serving(catalog=VISION) as running:
        assert running.client.request("GET", "/sdapi/v1/options").status == 200
