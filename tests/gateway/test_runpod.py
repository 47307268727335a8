"""RunPod endpoints as servers: here a worker's own ``/v2`` routes, which speak RunPod's API."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import openai
import pytest

from api.dialect import ApiOptions, Services
from api.files import FileOptions, FileStore
from api.gate import AccessOptions
from api.intake import ImageIntake, IntakeOptions
from api.keys import KeyRing
from api.openai_fields import Edit, Generation
from api.openai_images import OpenAIImages
from api.passthrough import Passthrough
from core.errors import ExecutionError
from core.service import Health
from gateway.asking import Reply
from gateway.runpod_jobs import answer_of, fault_of, input_of
from tests.api.queueing import Queue, queueing
from tests.api.serving import CATALOG, Painter, paint, png
from tests.gateway.fronting import Fronted, fronting

RUNPOD_KEY = "rpa_OPERATORS"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queue]:
    """A worker whose queue carries OpenAI's requests, as the RunPod handler does; it asks for a key."""
    with ImageIntake(IntakeOptions(codec_threads=2)) as intake:
        services = Services(
            submit=Painter(),
            catalog=CATALOG,
            health=lambda: Health(state="ready", model="painter"),
            options=ApiOptions(),
            intake=intake,
            admit=lambda: None,
            files=FileStore(FileOptions(folder=tmp_path_factory.mktemp("files"))),
        )
        routes = Passthrough(
            {
                "/v1/images/generations": OpenAIImages(services, Generation),
                "/v1/images/edits": OpenAIImages(services, Edit),
            }
        )
        folder: Path = tmp_path_factory.mktemp("jobs")
        with queueing(
            folder, passthrough=routes, access=AccessOptions(keys=KeyRing.of(True, [RUNPOD_KEY]))
        ) as queue:
            yield queue


@pytest.fixture
def fronted(endpoint: Queue) -> Iterator[Fronted]:
    """The callers have a key of the gateway's; the operator's own goes to the endpoint."""
    url = f"http://127.0.0.1:{endpoint.served.client.port}/v2/abc123"
    with fronting([url], runpod_key=RUNPOD_KEY, keys=KeyRing.of(True, ["caller"]), timeout=20.0) as running:
        yield running


def openai_client(fronted: Fronted) -> openai.OpenAI:
    return openai.OpenAI(
        api_key="caller",
        base_url=f"http://127.0.0.1:{fronted.client.port}/v1",
        max_retries=0,
        http_client=None,
    )


def post(fronted: Fronted, path: str, body: object, key: str = "caller") -> httpx.Response:
    url = f"http://127.0.0.1:{fronted.client.port}{path}"
    return httpx.post(url, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=30)


def colour(data: str) -> tuple[int, ...]:
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        return tuple(picture.convert("RGB").getpixel((0, 0)))  # type: ignore[arg-type]


def test_openais_client_makes_and_edits_pictures(fronted: Fronted) -> None:
    """A RunPod endpoint behind the gateway is an OpenAI-compatible server."""
    with openai_client(fronted) as client:
        made = client.images.generate(
            model="artist",
            prompt="a boat",
            size="64x64",
            extra_body={"seed": 300},
            response_format="b64_json",
        )
        assert made.data is not None
        assert made.data[0].b64_json is not None
        assert colour(made.data[0].b64_json) == tuple(paint(300))
        edited = client.images.edit(
            image=("cat.png", png(64, 64), "image/png"), prompt="paint", n=2, extra_body={"seed": 301}
        )
        assert edited.data is not None
        assert [colour(each.b64_json or "") for each in edited.data] == [tuple(paint(301)), tuple(paint(302))]


def test_what_the_worker_refuses_is_refused_in_openais_words(fronted: Fronted) -> None:
    """The client raises what it would raise of the worker itself."""
    with openai_client(fronted) as client, pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(model="artist", prompt="a boat", size="63x64", response_format="b64_json")
    assert caught.value.code == "invalid_parameter"


def test_flat_and_text_to_image_requests_become_jobs(fronted: Fronted) -> None:
    """In the shapes of their own dialects."""
    flat = post(
        fronted,
        "/runsync",
        {"input": {"prompt": "x", "model": "artist", "width": 64, "height": 64, "seed": 5}},
    )
    assert flat.status_code == 200, flat.text
    assert flat.json()["prompt"] == "x"
    assert colour(flat.json()["image"]) == tuple(paint(5))
    queued = post(fronted, "/v2/anything/runsync", {"input": {"prompt": "x", "model": "artist", "seed": 6}})
    assert queued.json()["status"] == "COMPLETED"


def test_a_job_that_fails_is_worded_by_the_contract(fronted: Fronted) -> None:
    """/generate of a worker that only edits: the sentence names the server, the status is its own."""
    refused = post(fronted, "/generate", {"prompt": "x"})
    assert refused.status_code == 422
    flat = post(fronted, "/run", {"input": {"prompt": "x", "model": "none"}})
    assert (flat.status_code, flat.json()["code"]) == (404, "model_not_found")
    worded = post(fronted, "/generate", {"prompt": "x", "steps": 1})
    assert worded.status_code == 422


def test_the_callers_key_is_not_sent_and_a_wrong_one_is_refused(fronted: Fronted, endpoint: Queue) -> None:
    """The endpoint lets the operator's key in alone: these answers show which one it was sent."""
    assert endpoint.served.client.request("GET", "/v2/x/health").status == 401
    assert fronted.client.get("/health").json()["text2image_server"]["status"] == "healthy"
    refused = post(fronted, "/runsync", {"input": {"prompt": "x", "model": "artist"}}, key=RUNPOD_KEY)
    assert refused.status_code == 401
    assert post(fronted, "/v2/a/run", {"input": {"prompt": "x", "model": "artist"}}).status_code == 200


def test_a_caller_who_leaves_cancels_the_job(fronted: Fronted, endpoint: Queue) -> None:
    """Also in the first second, when nobody knows the job's id yet."""
    endpoint.painter.shut()
    body = json.dumps({"input": {"prompt": "x", "model": "artist", "seed": 909}}).encode()
    with fronted.client.socket() as caller:
        caller.sendall(
            b"POST /runsync HTTP/1.1\r\nHost: g\r\nAuthorization: caller\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        while endpoint.painter.entered.get(timeout=10).seed != 909:
            pass
    assert endpoint.painter.cancelled.get(timeout=10)
    endpoint.painter.open()


def test_job_failures_have_the_status_of_their_code() -> None:
    """RunPod keeps the code beside the sentence, in the job or in its output."""
    fault = fault_of({"status": "FAILED", "error": "no room", "code": "queue_full"})
    assert (fault.code, fault.retryable) == ("queue_full", True)
    assert fault_of({"status": "TIMED_OUT"}).code == "deadline_exceeded"
    assert fault_of({"status": "FAILED", "error": "?", "code": "of tomorrow"}).code == "pipeline_error"
    with pytest.raises(ExecutionError):
        answer_of("/run", {"status": "COMPLETED", "output": {"error": "broke", "code": "pipeline_error"}})


def test_the_text_to_image_contract_is_kept() -> None:
    """A data URI, and the contract's own names."""
    job = input_of("/generate", [], b'{"prompt":"x","negative_prompt":"","guidance_scale":4.5,"seed":-1}')
    assert job == {"prompt": "x", "true_cfg_scale": 4.5, "seed": -1}
    done = {
        "status": "COMPLETED",
        "executionTime": 12,
        "output": {"image": "QQ==", "output_format": "png", "seed": 1, "width": 8, "height": 9},
    }
    told: Reply = answer_of("/generate", done)
    assert told.status == 200
