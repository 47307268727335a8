"""OpenAI's own client, unchanged, against a real server: generations, edits, addresses, streams."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from PIL import Image as Pillow

from api.dialect import ApiOptions
from core.errors import CapacityError, DeviceLost, OutOfDeviceMemory
from core.request import InferenceRequest, Task
from tests.api.serving import Served, paint, png, serving


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with connect(served) as made:
        yield made


def connect(served: Served, prefix: str = "") -> openai.OpenAI:
    while not served.painter.entered.empty():
        served.painter.entered.get()
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{served.client.port}{prefix}/v1", api_key="any", max_retries=0, timeout=20
    )


def computed(served: Served, count: int = 1) -> list[InferenceRequest]:
    """What reached the port."""
    return [served.painter.entered.get(timeout=5) for _ in range(count)]


def opened(text: str | None) -> Pillow.Image:
    assert text is not None
    return Pillow.open(io.BytesIO(base64.b64decode(text, validate=True)))


def file(data: bytes | None = None, name: str = "in.png") -> tuple[str, bytes]:
    return name, data or png()


@pytest.mark.parametrize("prefix", ["", "/openai", "/v2/any-endpoint/openai"])
def test_a_picture_of_a_text(served: Served, prefix: str) -> None:
    """The line that everybody writes first."""
    with connect(served, prefix) as client:
        answer = client.images.generate(
            model="artist", prompt="a lighthouse", size="128x96", extra_body={"seed": 1234}
        )
    assert answer.data is not None
    assert answer.data[0].url is None
    picture = opened(answer.data[0].b64_json)
    assert (picture.format, picture.size, picture.getpixel((0, 0))) == ("PNG", (128, 96), tuple(paint(1234)))
    assert (answer.size, answer.output_format, answer.background) == ("128x96", "png", "opaque")
    assert answer.created > 1_700_000_000
    assert answer.usage is not None
    assert answer.usage.output_tokens == 128 * 96 // 16**2
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert computed(served)[0].prompt == "a lighthouse"


def test_several_pictures_are_rows_of_their_own(served: Served, client: openai.OpenAI) -> None:
    """They share forwards with everybody else's rows, and each can be had again by its seed."""
    answer = client.images.generate(model="artist", prompt="x", n=3, size="64x64", extra_body={"seed": 7})
    assert answer.data is not None
    colours = [opened(one.b64_json).getpixel((0, 0)) for one in answer.data]
    assert colours == [tuple(paint(seed)) for seed in (7, 8, 9)]
    requests = computed(served, 3)
    assert sorted(request.seed for request in requests) == [7, 8, 9]
    assert len({request.id for request in requests}) == 3


@pytest.mark.parametrize("files", [1, 2, 3])
def test_one_or_several_pictures_are_edited(served: Served, client: openai.OpenAI, files: int) -> None:
    """The client names one ``image`` and several ``image[]``."""
    pictures = [file(png(colour=(at, 0, 0))) for at in range(files)]
    answer = client.images.edit(
        model="painter",
        image=pictures[0] if files == 1 else pictures,
        prompt="night",
        n=2,
        extra_body={"seed": 5},
    )
    assert answer.data is not None
    assert len(answer.data) == 2
    assert answer.size == "96x64"  # as large as what was sent
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.image_tokens > 0
    request = computed(served, 2)[0]
    assert request.task is Task.EDIT
    assert [image.pixels[0] for image in request.images] == list(range(files))


def test_a_masks_transparent_part_is_painted_anew(served: Served, client: openai.OpenAI) -> None:
    """OpenAI's masks mean by alpha 0 what ours mean by white."""
    mask = Pillow.new("RGBA", (96, 64), (0, 0, 0, 255))
    mask.paste((255, 255, 255, 0), (0, 0, 48, 64))
    out = io.BytesIO()
    mask.save(out, "PNG")
    client.images.edit(model="artist", image=file(), mask=file(out.getvalue()), prompt="a hat")
    request = computed(served)[0]
    assert request.mask is not None
    assert request.mask.pixels[:3] == b"\xff\xff\xff"
    assert request.mask.pixels[-3:] == b"\0\0\0"


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (png(95, 64, (0, 0, 0, 0), "RGBA"), "does not fit"),
        (png(96, 64, (0, 0, 0, 255), "RGBA"), "opaque all over"),
    ],
    ids=["size", "opaque"],
)
def test_a_mask_that_fits_nothing_is_refused(client: openai.OpenAI, mask: bytes, words: str) -> None:
    """Guessing where it belongs would spoil the caller's picture."""
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.images.edit(model="artist", image=file(), mask=file(mask), prompt="a hat")
    assert caught.value.param == "mask"


def test_an_edit_takes_json_too(served: Served) -> None:
    """With data URIs, plainly or in OpenAI's own objects."""
    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    with connect(served) as client:
        for body in ({"image": uri}, {"images": [{"image_url": uri}]}, {"image": [uri, uri]}):
            answer: Any = client.post(
                "/images/edits", cast_to=object, body={"prompt": "night", "model": "painter", **body}
            )
            assert opened(answer["data"][0]["b64_json"]).size == (96, 64)


def test_an_address_instead_of_the_picture(served: Served, client: openai.OpenAI) -> None:
    """Absolute, and never both at once."""
    answer = client.images.generate(
        model="artist",
        prompt="x",
        n=2,
        size="64x64",
        response_format="url",
        output_format="jpeg",
        extra_body={"seed": 5},
    )
    assert answer.data is not None
    for one in answer.data:
        assert one.b64_json is None
        assert one.url is not None
        place = urlsplit(one.url)
        assert (place.scheme, place.port) == ("http", served.client.port)
        fetched = served.client.get(place.path)
        assert fetched.headers["content-type"] == "image/jpeg"
        assert Pillow.open(io.BytesIO(fetched.body)).size == (64, 64)


def test_the_operator_can_make_addresses_the_rule(tmp_path: Path) -> None:
    """For clients that read nothing but ``url`` and do not ask for it."""
    with serving(ApiOptions(images_response_format="url")) as served, connect(served) as client:
        answer = client.images.generate(prompt="x", size="64x64")
        assert answer.data is not None
        assert answer.data[0].url is not None
        again = client.images.generate(prompt="x", size="64x64", response_format="b64_json")
        assert again.data is not None
        assert again.data[0].b64_json is not None


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_formats_and_their_compression(client: openai.OpenAI, kind: Any) -> None:
    """What was asked for is what comes, by its bytes."""
    quality: Any = openai.omit if kind == "png" else 10
    answer = client.images.generate(
        model="artist", prompt="x", size="64x64", output_format=kind, output_compression=quality
    )
    assert answer.data is not None
    assert opened(answer.data[0].b64_json).format == kind.upper()


@pytest.mark.parametrize(
    ("quality", "extra", "steps"),
    [
        ("low", {}, 4),
        ("medium", {}, 8),
        ("high", {}, 40),
        ("max", {}, 40),
        ("standard", {}, 40),
        ("auto", {}, 40),
        ("low", {"num_inference_steps": 11}, 11),
    ],
)
def test_quality_is_a_number_of_steps(
    served: Served, client: openai.OpenAI, quality: Any, extra: dict[str, int], steps: int
) -> None:
    """Whoever counts the steps themselves is obeyed."""
    client.images.generate(model="artist", prompt="x", size="64x64", quality=quality, extra_body=extra)
    assert computed(served)[0].steps == steps


def test_other_servers_names_are_understood(served: Served, client: openai.OpenAI) -> None:
    """Those of vLLM-Omni and SGLang, as text in forms."""
    client.images.edit(
        model="artist",
        image=file(),
        prompt="x",
        extra_body={
            "seed": "3",
            "num_inference_steps": 20,
            "guidance_scale": 2.5,
            "negative_prompt": "fog",
            "strength": 0.5,
            "lora": "comic",
        },
    )
    request = computed(served)[0]
    assert (request.seed, request.steps, request.cfg, request.strength) == (3, 20, 2.5, 0.5)
    assert (request.negative_prompt, request.adapters) == ("fog", (("comic", 1.0),))


@pytest.mark.parametrize("model", ["gpt-image-1.5", "dall-e-3", "chatgpt-image-latest", None])
def test_openais_own_models_mean_what_is_served(served: Served, client: openai.OpenAI, model: Any) -> None:
    """Some clients have such a name built in; for a text alone a row that can make a picture stands in."""
    client.images.edit(model=model, image=file(), prompt="x")
    client.images.generate(model=model, prompt="x")
    assert [request.model for request in computed(served, 2)] == ["painter", "artist"]


@pytest.mark.parametrize("partials", [0, 1, 3])
def test_a_stream_of_previews(served: Served, client: openai.OpenAI, partials: int) -> None:
    """Numbered, as large as the result, and with exactly one end."""
    made = list(
        client.images.generate(
            model="artist",
            prompt="x",
            size="80x64",
            stream=True,
            partial_images=partials,
            extra_body={"seed": 9},
        )
    )
    assert [event.type for event in made] == [
        *["image_generation.partial_image"] * partials,
        "image_generation.completed",
    ]
    for at, event in enumerate(made):
        assert opened(event.b64_json).size == (80, 64)
        if event.type == "image_generation.partial_image":
            assert event.partial_image_index == at
    last = made[-1]
    assert last.type == "image_generation.completed"
    assert last.usage.output_tokens > 0
    assert opened(last.b64_json).getpixel((0, 0)) == tuple(paint(9))


def test_an_edit_streams_under_its_own_names(served: Served, client: openai.OpenAI) -> None:
    """Multipart, so ``true`` and ``2`` come as text."""
    made = list(client.images.edit(model="painter", image=file(), prompt="x", stream=True, partial_images=2))
    assert [event.type for event in made] == [*["image_edit.partial_image"] * 2, "image_edit.completed"]


def test_an_error_inside_a_stream_is_an_exception(fresh: Served) -> None:
    """The status went out long before."""
    fresh.painter.fault = OutOfDeviceMemory()
    fresh.painter.shut()
    with connect(fresh) as client:
        events = client.images.generate(model="artist", prompt="x", stream=True, partial_images=1)
        fresh.painter.open()
        with pytest.raises(openai.APIError, match="smaller image") as caught:
            list(events)
    assert caught.value.code == "gpu_out_of_memory"


def test_leaving_a_stream_cancels_its_job(fresh: Served) -> None:
    """A closed page must not cost a GPU its time."""
    fresh.painter.shut()
    with connect(fresh) as client:
        client.images.generate(model="artist", prompt="x", stream=True).close()
        assert fresh.painter.cancelled.get(timeout=5) == computed(fresh)[0].id


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"output_format": "gif"}, "output_format"),
        ({"output_format": "svg"}, "output_format"),
        ({"output_format": "bmp"}, "output_format"),
        ({"background": "transparent"}, "background"),
        ({"svg": {"model": "x"}}, "svg"),
        ({"frame_count": 4}, "frame_count"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"n": "2"}, "n"),
        ({"n": 2, "stream": True}, "n"),
        ({"size": "big"}, "size"),
        ({"size": "4096x64"}, "size"),
        ({"quality": "superb"}, "quality"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"partial_images": 1}, "partial_images"),
        ({"output_compression": 50}, "output_compression"),
        ({"response_format": "xml"}, "response_format"),
        ({"num_inference_steps": 1000}, "num_inference_steps"),
        ({"true_cfg_scale": 99}, "true_cfg_scale"),
        ({"seed": 2**63 - 1, "n": 2}, "seed"),
        ({"loras": ["comix"]}, "loras"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"model": "dreamer"}, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_named(served: Served, body: dict[str, Any], param: str | None) -> None:
    """400 for the client's ``BadRequestError``, with the field."""
    with connect(served) as client:
        asked = {"prompt": "x", "model": "artist", "size": "64x64", **body}
        if param is None:
            assert client.post("/images/generations", cast_to=object, body=asked)
            return
        with pytest.raises(openai.BadRequestError) as caught:
            client.post("/images/generations", cast_to=object, body=asked)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id
    assert param.rstrip("s").split("_")[0] in caught.value.message


def test_a_misspelt_field_is_not_passed_over(client: openai.OpenAI) -> None:
    """The nearest known name is offered; what the standard defines beyond our means is taken."""
    with pytest.raises(openai.BadRequestError, match="num_inference_steps"):
        client.images.generate(prompt="x", extra_body={"num_inference_step": 3})
    client.images.generate(
        prompt="x", size="64x64", moderation="low", style="vivid", user="me", safety_identifier="u"
    )


@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        (CapacityError("queue_full", "full", retry_after=1), openai.RateLimitError, "queue_full"),
        (OutOfDeviceMemory(), openai.InternalServerError, "gpu_out_of_memory"),
        (DeviceLost(), openai.InternalServerError, "device_lost"),
        (KeyError("secret"), openai.InternalServerError, "pipeline_error"),
    ],
    ids=["full", "memory", "device", "unforeseen"],
)
def test_failures_are_the_clients_own_exceptions(
    fresh: Served, fault: BaseException, kind: type[openai.APIStatusError], code: str
) -> None:
    """Programs choose what to do by them."""
    fresh.painter.fault = fault
    with connect(fresh) as client, pytest.raises(kind) as caught:
        client.images.generate(prompt="x")
    assert (caught.value.code, "secret" in str(caught.value)) == (code, False)


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    """Silence would compute with another one than was paid for."""
    with pytest.raises(openai.NotFoundError, match="artist") as caught:
        client.images.generate(model="artyst", prompt="x")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_no_picture_and_no_picture_at_all(client: openai.OpenAI) -> None:
    """Both are the caller's, and said of the field."""
    for sent in (b"", b"no picture"):
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.edit(image=("in.png", sent), prompt="x")
        assert caught.value.param == "image"


def test_variations_say_what_to_use_instead(client: openai.OpenAI) -> None:
    """OpenAI has retired them too."""
    with (
        pytest.warns(DeprecationWarning, match="deprecated"),
        pytest.raises(openai.BadRequestError, match="edits") as caught,
    ):
        client.images.create_variation(image=file())
    assert caught.value.param == "image"
