"""The Hugging Face tasks, asked by the hub's own client over real HTTP."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import ImageToImageTargetSize, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image as Pillow

from core.errors import CapacityError
from core.request import InferenceRequest, Task
from tests.api.serving import Served, paint, png, serving, text
from tests.api.test_hostile import BODIES, SECRET, bomb, check_refusal

JSON = {"Content-Type": "application/json"}


def asked(served: Served) -> InferenceRequest:
    return served.painter.entered.get(timeout=5)


@pytest.fixture
def client(served: Served) -> Callable[..., InferenceClient]:
    """Clients whose address is a task's own; the painter has forgotten earlier requests."""
    while not served.painter.entered.empty():
        served.painter.entered.get()

    def make(task: str, *, model: str = "artist", served: Served = served) -> InferenceClient:
        address = f"http://127.0.0.1:{served.client.port}/hf/{task}"
        url = f"{address}?model={model}" if model else address
        return InferenceClient(base_url=url, provider="hf-inference", token="hf_x")

    return make


def test_text_to_image(client: Callable[..., InferenceClient], served: Served) -> None:
    """Every parameter of the client's method, and a picture back."""
    picture = client("text-to-image").text_to_image(
        "a lighthouse",
        negative_prompt="fog",
        width=96,
        height=64,
        num_inference_steps=7,
        guidance_scale=3.5,
        scheduler="DDIM",
        seed=11,
    )
    assert (picture.size, picture.getpixel((0, 0)), picture.format) == ((96, 64), tuple(paint(11)), "PNG")
    request = asked(served)
    assert (request.task, request.prompt, request.negative_prompt) == (Task.GENERATE, "a lighthouse", "fog")
    assert (request.steps, request.cfg, request.seed) == (7, 3.5, 11)


def test_the_model_may_be_a_parameter(client: Callable[..., InferenceClient], served: Served) -> None:
    """``extra_body`` is the client's own way to say more; it wins over the address."""
    client("text-to-image").text_to_image("x", extra_body={"model": "dreamer"})
    assert asked(served).model == "dreamer"


def test_image_to_image(client: Callable[..., InferenceClient], served: Served) -> None:
    """With parameters the client sends JSON; the prompt is one of them."""
    picture = client("image-to-image").image_to_image(
        png(96, 64),
        prompt="make it night",
        negative_prompt="stars",
        num_inference_steps=8,
        guidance_scale=2.0,
        target_size=ImageToImageTargetSize(height=128, width=192),
        seed=5,
        strength=0.5,
    )
    assert (picture.size, picture.getpixel((0, 0))) == ((192, 128), tuple(paint(5)))
    request = asked(served)
    assert (request.task, request.prompt, request.strength) == (Task.EDIT, "make it night", 0.5)
    assert (request.steps, request.cfg, request.images[0].size) == (8, 2.0, (96, 64))


def test_a_bare_picture_is_a_body(client: Callable[..., InferenceClient], served: Served) -> None:
    """Without parameters the client sends the file as it is, and so nobody says what to do."""
    client("image-to-image", model="").image_to_image(png(96, 64))
    request = asked(served)
    assert (request.model, request.prompt, request.images[0].size) == (
        "painter",
        "Enhance the image",
        (96, 64),
    )


def test_the_health_check(client: Callable[..., InferenceClient], fresh: Served) -> None:
    """The client asks below its address and wants exactly 200."""
    assert client("text-to-image", model="", served=fresh).health_check()
    fresh.probe.say("draining")
    assert not client("text-to-image", model="", served=fresh).health_check()


@pytest.mark.parametrize(
    ("task", "ask", "status", "sentence"),
    [
        (
            "text-to-image",
            lambda client: client.text_to_image("x", num_inference_steps=1000),
            422,
            "num_inference_steps 1000 is outside 1 to 100",
        ),
        (
            "text-to-image",
            lambda client: client.text_to_image("x", extra_body={"num_inference_step": 4}),
            422,
            "did you mean 'num_inference_steps'?",
        ),
        ("text-to-image", lambda client: client.text_to_image(" "), 422, "inputs is empty; say what to do"),
        ("image-to-image", lambda client: client.image_to_image(b"GIF89a?"), 422, "the image cannot be read"),
        (
            "text-generation",
            lambda client: client.text_to_image("x"),
            404,
            "known: text-to-image, image-to-image",
        ),
    ],
    ids=["steps", "misspelt", "no prompt", "no picture", "no such task"],
)
def test_the_client_shows_why(
    task: str,
    ask: Callable[[InferenceClient], Any],
    status: int,
    sentence: str,
    client: Callable[..., InferenceClient],
) -> None:
    """It reads ``error`` alone, and prints the request's id beside it."""
    with pytest.raises(HfHubHTTPError) as caught:
        ask(client(task))
    assert caught.value.response.status_code == status
    assert sentence in str(caught.value)
    assert caught.value.response.headers["x-request-id"] in str(caught.value)


def test_overload_says_when_to_come_back() -> None:
    """A refusal before the body is read has the dialect's shape too."""
    with serving() as served:
        served.painter.refusal = CapacityError("queue_full", "256 requests wait", retry_after=3)
        answer = served.client.request("POST", "/hf/text-to-image", b"{}", JSON)
    assert (answer.status, answer.headers["retry-after"]) == (429, "3")
    assert answer.json() == {"error": "256 requests wait", "code": "queue_full"}


@pytest.mark.parametrize(
    ("accept", "parameters", "kind"),
    [
        ("image/png", {}, "png"),
        ("image/jpeg", {}, "jpeg"),
        ("image/jpg", {}, "jpeg"),
        ("image/webp;q=0.9, image/png;q=0.5", {}, "webp"),
        ("image/avif, image/webp;q=x", {}, "png"),
        ("*/*", {}, "png"),
        ("", {}, "png"),
        ("image/png", {"output_format": "webp"}, "webp"),
    ],
)
def test_the_format_is_what_was_asked_for(
    accept: str, parameters: dict[str, str], kind: str, served: Served
) -> None:
    """By name, else by the Accept header; and the content type tells the truth."""
    body = json.dumps({"inputs": "x", "parameters": parameters}).encode()
    headers = JSON | ({"Accept": accept} if accept else {})
    answer = served.client.request("POST", "/hf/text-to-image?model=artist", body, headers)
    assert (answer.status, answer.headers["content-type"]) == (200, f"image/{kind}")
    assert (Pillow.open(io.BytesIO(answer.body)).format or "").lower() == kind
    assert {"x-seed", "x-model", "x-queue-ms", "x-inference-ms", "x-batch-size"} <= answer.headers.keys()


PICTURE = text(png())


def body(inputs: object, **parameters: object) -> bytes:
    return json.dumps({"inputs": inputs, "parameters": parameters}).encode()


REFUSED = {
    "nothing": (b"", 422),
    "text": (b"hello " + SECRET.encode(), 422),
    "half a body": (body(PICTURE)[:-10], 400),
    "list": (b"[]", 422),
    "empty": (b"{}", 422),
    "zero bytes": (bytes(1000), 422),
    "inputs is a number": (body(1), 422),
    "inputs is null": (body(None), 422),
    "no base64": (body("%" + SECRET), 422),
    "file url": (body("file:///etc/passwd"), 422),
    "inner address": (body("http://127.0.0.1/x"), 422),
    "bomb": (body(bomb(50_000)), 413),
    "parameters is a list": (b'{"inputs": "x", "parameters": []}', 422),
    "options is text": (b'{"inputs": "x", "options": "x"}', 422),
    "secret as name": (body(PICTURE, **{SECRET: 1}), 422),
    "secret beside inputs": (json.dumps({"inputs": PICTURE, SECRET: 1}).encode(), 422),
    "secret as model": (body(PICTURE, model=SECRET), 404),
    "two sizes": (body(PICTURE, width=64, target_size={"width": 64, "height": 64}), 422),
    "half a size": (body(PICTURE, target_size={"width": 64}), 422),
    "size of more": (body(PICTURE, target_size={"width": 64, "height": 64, "depth": 1}), 422),
    "strength of a model without": (body(PICTURE, strength=0.5), 422),
    "mask of a model without": (body(PICTURE, mask_image=PICTURE), 422),
    "text as seed": (body(PICTURE, seed="1"), 422),
    "huge width": (body(PICTURE, width=2**40), 422),
    "nan": (b'{"inputs": "x", "parameters": {"guidance_scale": NaN}}', 400),
    "duplicate key": (b'{"inputs": "x", "inputs": "y"}', 400),
    "deep": (b'{"inputs":' * 100_000, 400),
    "long prompt": (body(PICTURE, prompt="x" * 100_000), 422),
    "format of its own": (body(PICTURE, output_format="../x"), 422),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_body_is_the_callers_fault(name: str, guarded: Served) -> None:
    """And nothing of it comes back."""
    content, status = REFUSED[name]
    answer = guarded.client.request("POST", "/hf/image-to-image", content)
    assert answer.status == status, answer.body
    check_refusal(answer)
    assert answer.json()["error"]
    assert guarded.painter.entered.empty()


@pytest.mark.parametrize("task", ["text-to-image", "image-to-image"])
@pytest.mark.parametrize("name", BODIES)
def test_bodies_of_another_dialect_do_no_harm(name: str, task: str, guarded: Served) -> None:
    """What breaks a reader of JSON breaks all of them."""
    content, _ = BODIES[name]
    answer = guarded.client.request("POST", f"/hf/{task}", content, JSON)
    assert 400 <= answer.status < 500, answer.body
    check_refusal(answer)


@pytest.mark.parametrize("task", ["x" * 5000, "%2e%2e%2fetc", SECRET, "text-to-image%00"])
def test_an_unknown_task_is_not_repeated(task: str, served: Served) -> None:
    """It could be anything."""
    answer = served.client.request("POST", f"/hf/{task}", b"{}")
    assert answer.status == 404
    check_refusal(answer)
