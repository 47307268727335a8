"""The flat dialect's wishes beyond a plain edit: no picture, a mask, strength, LoRAs, a step cache."""

import asyncio
import json
from typing import Any

import pytest

from api.budget import Lease
from api.flat import FALLBACK_PROMPT, FlatDialect, FlatJob, refuse
from api.flat_fields import FlatInput
from api.images import ImageLimits
from api.intake import Fetch, ImageIntake, IntakeOptions
from core.errors import ServingError
from core.request import Task
from tests.api.serving import ARTIST, CATALOG, png, text

PICTURE = text(png(96, 64))
MASK = text(png(96, 64, (255,), "L"))
EDIT = {"prompt": "p", "model": "artist", "image_base64": PICTURE}
TEXT = {"prompt": "a lighthouse", "model": "artist"}


class Shelf:
    """Every URL holds a white picture of 96x64."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.leases: list[Lease] = []

    async def __call__(self, url: str, lease: Lease) -> bytes:
        self.asked.append(url)
        self.leases.append(lease)
        return png(96, 64, (255, 255, 255))


def parse(
    wishes: object, fetch: Fetch | None = None, images: IntakeOptions | None = None, **options: Any
) -> FlatJob:
    with ImageIntake(images or IntakeOptions(codec_threads=1), fetch or Shelf()) as intake:
        return asyncio.run(FlatDialect(catalog=CATALOG, intake=intake).parse(wishes, id="job-1", **options))


def refused(wishes: object, **options: Any) -> ServingError:
    with pytest.raises(ServingError) as caught:
        parse(wishes, **options)
    return caught.value


def test_a_model_that_can_makes_a_picture_of_a_text_alone() -> None:
    """Square, at the model's own area, as nothing else is known."""
    request = parse(TEXT).request
    assert (request.task, request.images, request.strength) == (Task.GENERATE, (), None)
    assert request.size == (1024, 1024)
    assert request.prompt == "a lighthouse"


def test_the_same_model_edits_where_a_picture_comes_along() -> None:
    """No further field says which of the two is meant."""
    request = parse(EDIT).request
    assert (request.task, request.strength) == (Task.EDIT, 0.6)
    assert request.images[0].size == (96, 64)


@pytest.mark.parametrize("more", [{}, {"mask": MASK}, {"image_url": "", "images": []}])
def test_a_model_that_only_edits_still_asks_for_its_picture(more: dict[str, object]) -> None:
    """The first clients know this status and this text."""
    status, body = refuse(refused({"prompt": "p", **more}), request_id="r", gpu_available=True)
    assert (status, body["detail"]) == (400, "Either image_url or image_base64 required")


def test_a_picture_for_a_model_that_only_generates_is_refused() -> None:
    """Ignored, the caller would take the answer for an edit of it."""
    error = refused({"prompt": "p", "model": "dreamer", "image_url": "https://a.example/1"})
    status, body = refuse(error, request_id="r", gpu_available=True)
    assert (status, body["code"], body["param"]) == (422, "invalid_parameter", "images")
    assert "dreamer" in body["detail"]
    assert "leave images out" in body["detail"]


def test_the_stand_in_for_a_prompt_needs_a_picture() -> None:
    """``Enhance the image`` of none would be a picture of those words."""
    job = {name: value for name, value in EDIT.items() if name != "prompt"}
    assert parse(job, prompt_fallback=FALLBACK_PROMPT).request.prompt == FALLBACK_PROMPT
    assert refused({"model": "artist"}, prompt_fallback=FALLBACK_PROMPT).param == "prompt"


@pytest.mark.parametrize(
    "wishes",
    [
        {"mask": MASK},
        {"mask": "data:image/png;base64," + MASK},
        {"mask": "https://a.example/mask"},
        {"mask_base64": MASK},
        {"mask_url": "https://a.example/mask"},
        {"mask_url": "https://a.example/mask", "mask_base64": "never looked at"},
        {"mask": "", "mask_url": "", "mask_base64": MASK},
    ],
)
def test_a_mask_may_be_named_as_a_picture_may(wishes: dict[str, object]) -> None:
    """URL, data URI or base64; a URL wins, and empty texts are absent ones."""
    request = parse(EDIT | wishes).request
    assert request.mask is not None
    assert request.mask.size == (96, 64)
    assert request.mask.pixels == b"\xff" * (3 * 96 * 64)
    assert len(request.images) == 1
    assert request.images[0].pixels[:3] == bytes((10, 20, 30))


def test_a_transparent_part_of_a_mask_is_painted_anew() -> None:
    """Masks of OpenAI's images API are holes; like any picture they are laid on white."""
    hole = parse(EDIT | {"mask": text(png(96, 64, (0, 0, 0, 0), "RGBA"))}).request.mask
    kept = parse(EDIT | {"mask": text(png(96, 64, (0, 0, 0, 255), "RGBA"))}).request.mask
    assert hole is not None
    assert kept is not None
    assert (hole.pixels[0], kept.pixels[0]) == (255, 0)


def test_every_wish_arrives() -> None:
    """Under the name that the core knows it by."""
    wishes = {
        "strength": 0.25,
        "num_inference_steps": 8,
        "loras": [{"id": "pencil", "scale": 0.5}, {"id": "comic"}],
        "step_cache": 0.1,
    }
    request = parse(EDIT | wishes).request
    assert (request.strength, request.steps, request.steps_run) == (0.25, 8, 2)
    assert request.adapters == (("comic", 1.0), ("pencil", 0.5))
    assert request.step_cache == 0.1


def test_nulls_leave_the_choice_to_the_server() -> None:
    """Go and JavaScript clients send every field they know."""
    nulls: dict[str, object] = dict.fromkeys(FlatInput.model_fields)
    request = parse(nulls | EDIT | {"loras": [{"id": "comic", "scale": None}]}).request
    assert (request.strength, request.step_cache, request.mask) == (0.6, 0.0, None)
    assert request.adapters == (("comic", 1.0),)
    assert parse(EDIT | {"loras": []}).request.adapters == ()


@pytest.mark.parametrize(
    ("wishes", "param"),
    [
        ({"mask": 5}, "mask"),
        ({"mask": MASK, "mask_url": "https://a.example/mask"}, "mask"),
        ({"strength": "0.5"}, "strength"),
        ({"strength": True}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"strength": 1.5}, "strength"),
        ({"strength": 0.0}, "strength"),
        ({"strength": 0.1, "num_inference_steps": 4}, "strength"),
        ({"step_cache": -0.5}, "step_cache"),
        ({"step_cache": float("inf")}, "step_cache"),
        ({"loras": "comic"}, "loras"),
        ({"loras": ["comic"]}, "loras.0"),
        ({"loras": [{}]}, "loras.0.id"),
        ({"loras": [{"id": "comic"}, {"id": 5}]}, "loras.1.id"),
        ({"loras": [{"id": "comic", "scale": "1"}]}, "loras.0.scale"),
        ({"loras": [{"id": "comic", "scale": float("nan")}]}, "loras.0.scale"),
        ({"loras": [{"id": "comic", "scale": 5}]}, "loras"),
        ({"loras": [{"id": "comic"}, {"id": "comic"}]}, "loras"),
        ({"loras": [{"id": "comic"}] * 5}, "loras"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_by_name(wishes: dict[str, object], param: str) -> None:
    """Before anything is fetched: the picture's address is never asked."""
    shelf = Shelf()
    asked = {"prompt": "p", "model": "artist", "image_url": "https://a.example/1", **wishes}
    error = refused(asked, fetch=shelf)
    assert (error.code, error.param) == ("invalid_parameter", param)
    assert shelf.asked == []


def test_a_misspelt_field_of_a_lora_is_refused_with_the_right_spelling() -> None:
    """Ignored, it would quietly apply the LoRA in full."""
    error = refused(EDIT | {"loras": [{"id": "comic"}, {"id": "pencil", "scal": 0.5}]})
    assert (error.code, error.param) == ("unknown_field", "loras.1")
    assert "did you mean 'scale'?" in error.message


def test_a_misspelt_lora_is_refused_with_the_nearest_one() -> None:
    """Only those that the operator allows exist."""
    error = refused(EDIT | {"loras": [{"id": "comik"}]})
    assert (error.code, error.param) == ("invalid_parameter", "loras")
    assert "did you mean 'comic'?" in error.message


@pytest.mark.parametrize(
    "wishes",
    [
        {"mask": MASK},
        {"strength": 0.5},
        {"loras": [{"id": "comic"}]},
        {"step_cache": 0.1},
    ],
    ids=lambda wishes: next(iter(wishes)),
)
def test_what_a_model_cannot_do_is_refused_and_never_left_out(wishes: dict[str, object]) -> None:
    """An answer without it would look like one with it."""
    error = refused({"prompt": "p", "image_base64": PICTURE, **wishes})
    assert (error.code, error.param) == ("invalid_parameter", next(iter(wishes)))


@pytest.mark.parametrize("wishes", [{"mask": MASK}, {"strength": 0.5}])
def test_a_mask_and_a_strength_need_a_picture(wishes: dict[str, object]) -> None:
    """There is nothing to keep and nothing to begin with."""
    error = refused(TEXT | wishes)
    assert (error.code, error.param) == ("invalid_parameter", next(iter(wishes)))
    assert "picture" in error.message


def test_a_mask_of_another_size_is_refused_with_both_sizes() -> None:
    """Stretched, it would uncover what was to be kept."""
    error = refused(EDIT | {"mask": text(png(96, 63))})
    assert (error.code, error.param) == ("invalid_parameter", "mask")
    assert "96x63" in error.message
    assert "96x64" in error.message


def test_a_mask_counts_as_a_picture_does() -> None:
    """Its file has the same limits, and fails under its own name."""
    small = IntakeOptions(limits=ImageLimits(max_pixels=96 * 64), codec_threads=1)
    error = refused(EDIT | {"mask": text(png(97, 64))}, images=small)
    assert (error.code, error.param) == ("image_too_large", "mask")
    error = refused(EDIT | {"mask_base64": text(b"no picture")})
    assert (error.code, error.param) == ("invalid_image", "mask_base64")
    shelf = Shelf()
    urls = {"image_base64": None, "image_url": "https://a.example/1", "mask_url": "https://a.example/2"}
    parse(EDIT | urls, fetch=shelf)
    assert shelf.asked == ["https://a.example/1", "https://a.example/2"]
    assert shelf.leases[0] is shelf.leases[1], "what both hold is counted together"
    assert parse(EDIT | {"mask": MASK}).request.nbytes == 2 * 3 * 96 * 64 + len("p" + " ")


SECRET = "hunter2-0451"


@pytest.mark.parametrize(
    "wishes",
    [
        {"mask": SECRET},
        {"mask_url": f"http://127.0.0.1/{SECRET}"},
        {"strength": SECRET},
        {"loras": [{"id": SECRET}]},
        {"loras": [{"id": "comic", SECRET: 1}]},
        {"loras": {SECRET: SECRET}},
    ],
)
def test_no_error_repeats_what_was_sent(wishes: dict[str, object]) -> None:
    """Error texts end up in logs and on pages."""
    with ImageIntake(IntakeOptions(codec_threads=1)) as intake, pytest.raises(ServingError) as caught:
        asyncio.run(FlatDialect(catalog=CATALOG, intake=intake).parse(EDIT | wishes, id="x"))
    _, body = refuse(caught.value, request_id="r", gpu_available=True)
    assert SECRET not in json.dumps(body)


def test_the_schema_stands_alone() -> None:
    """It is shown in the middle of another document, where a reference would lead nowhere."""
    schema = FlatInput.model_json_schema()
    assert "$ref" not in json.dumps(schema)
    assert ARTIST.adapters
    lora = schema["properties"]["loras"]["anyOf"][0]["items"]
    assert set(lora["properties"]) == {"id", "scale"}
    assert (lora["required"], lora["additionalProperties"]) == (["id"], False)
