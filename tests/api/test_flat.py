"""The flat dialect: what goes in, what comes out, and what is refused by which name."""

import asyncio
import base64
import io
import json
import time
from typing import Any

import pytest
from PIL import Image as Pillow

from api.budget import Lease
from api.flat import FALLBACK_PROMPT, FlatDialect, FlatJob, refuse, unwrap
from api.flat_fields import FlatAnswer, FlatInput
from api.intake import Fetch, ImageIntake, IntakeOptions
from core.errors import ExecutionError, RequestError, ServingError
from core.request import Image
from core.result import InferenceResult
from tests.api.serving import CATALOG, png, text

PICTURE = text(png(96, 64))


class Shelf:
    """Every URL holds a picture as wide as the number in it."""

    async def __call__(self, url: str, lease: Lease) -> bytes:
        return png(int(url.rpartition("/")[2]), 64)


def parse(wishes: object, fetch: Fetch | None = None, **options: Any) -> FlatJob:
    with ImageIntake(IntakeOptions(codec_threads=1), fetch or Shelf()) as intake:
        dialect = FlatDialect(catalog=CATALOG, intake=intake, output_format="webp", timeout=60)
        return asyncio.run(dialect.parse(wishes, id="job-1", **options))


def refused(wishes: object) -> ServingError:
    with pytest.raises(ServingError) as caught:
        parse(wishes)
    return caught.value


def test_a_side_of_zero_is_an_absent_one() -> None:
    """Clients in Go send the zero of a field that nobody set."""
    job = parse({"prompt": "p", "image_base64": PICTURE, "width": 0, "height": 0})
    assert job.request.size == parse({"prompt": "p", "image_base64": PICTURE}).request.size


def test_every_field_arrives() -> None:
    """Under its own name, with nothing rewritten: a client asserts that its prompt comes back verbatim."""
    job = parse(
        {
            "prompt": "  Make it  déjà-vu \n",
            "image_base64": PICTURE,
            "seed": 42,
            "width": 200,
            "height": 120,
            "num_inference_steps": 8,
            "true_cfg_scale": 2.5,
            "negative_prompt": "",
            "output_format": "jpeg",
            "model": "ORG/painter",
            "timeout": 12,
        }
    )
    request = job.request
    assert request.id == "job-1"
    assert request.prompt == "  Make it  déjà-vu \n"
    assert (request.size, request.canvas) == ((200, 120), (208, 128))
    assert (request.steps, request.cfg, request.seed) == (8, 2.5, 42)
    assert (request.negative_prompt, request.model) == ("", "painter")
    assert request.timeout is not None
    assert 0 < request.timeout <= 12
    assert job.output_format == "jpeg"
    assert request.images[0].size == (96, 64)


def test_nulls_and_empty_pictures_are_as_good_as_absent() -> None:
    """Go and JavaScript clients send every field they know."""
    wishes = dict.fromkeys(FlatInput.model_fields) | {"prompt": "p", "image_base64": PICTURE, "image_url": ""}
    job = parse(wishes)
    assert (job.request.steps, job.request.cfg) == (40, 4.0)
    assert job.request.timeout is not None
    assert 12 < job.request.timeout <= 60
    assert job.output_format == "webp"


def test_a_timeout_begins_when_the_request_arrives() -> None:
    """What the upload took is gone; the mux gets what is left."""
    wishes = {"prompt": "p", "image_base64": PICTURE, "timeout": 600}
    left = parse(wishes, arrived=time.monotonic() - 500).request.timeout
    assert left is not None
    assert 0 < left <= 100


def test_nothing_left_is_refused_before_any_work() -> None:
    """The picture would be fetched for an answer that nobody waits for."""
    wishes = {"prompt": "p", "image_url": "https://a.example/not-a-number", "timeout": 5}
    with pytest.raises(ExecutionError) as caught:
        parse(wishes, arrived=time.monotonic() - 6)
    assert caught.value.code == "deadline_exceeded"


class NeverArrives:
    """A fetch that only a cancel ends."""

    async def __call__(self, url: str, lease: Lease) -> bytes:
        await asyncio.Event().wait()
        return b""


def test_a_download_may_not_outlast_the_deadline() -> None:
    """Its own limit can be the longer one."""
    wishes = {"prompt": "p", "image_url": url(100), "timeout": 0.05}
    with pytest.raises(ExecutionError) as caught:
        parse(wishes, fetch=NeverArrives())
    assert caught.value.code == "deadline_exceeded"


def test_whole_numbers_may_stand_for_fractions() -> None:
    """4 is how most clients write 4.0."""
    assert parse({"prompt": "p", "image_base64": PICTURE, "true_cfg_scale": 4}).request.cfg == 4.0


def url(width: int) -> str:
    return f"https://a.example/{width}"


@pytest.mark.parametrize(
    ("wishes", "widths"),
    [
        ({"image_url": url(100)}, [100]),
        ({"image_base64": PICTURE}, [96]),
        ({"image_url": url(100), "image_base64": PICTURE}, [100]),
        ({"image_base64": "data:image/jpeg;base64," + PICTURE}, [96]),
        ({"image_url": "data:image/png;base64," + PICTURE}, [96]),
        ({"image_base64": PICTURE, "image_url_2": url(101), "image_base64_3": PICTURE}, [96, 101, 96]),
        ({"image_base64": PICTURE, "image_base64_2": PICTURE, "image_url_2": url(101)}, [96, 101]),
        ({"image": PICTURE}, [96]),
        ({"image": url(100)}, [100]),
        ({"images": [url(100), PICTURE, url(101)]}, [100, 96, 101]),
    ],
)
def test_a_picture_may_be_named_in_every_way_that_clients_use(
    wishes: dict[str, object], widths: list[int]
) -> None:
    """A URL wins over base64 of the same number."""
    assert [image.width for image in parse({"prompt": "p", **wishes}).request.images] == widths


@pytest.mark.parametrize(
    ("wishes", "param"),
    [
        ({"seed": True}, "seed"),
        ({"seed": "8"}, "seed"),
        ({"seed": 8.0}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -2}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": "8"}, "num_inference_steps"),
        ({"width": 10**5}, "width"),
        ({"width": 512.0}, "width"),
        ({"width": 512, "height": -1}, "height"),
        ({"true_cfg_scale": float("nan")}, "true_cfg_scale"),
        ({"true_cfg_scale": float("inf")}, "true_cfg_scale"),
        ({"true_cfg_scale": True}, "true_cfg_scale"),
        ({"true_cfg_scale": "4"}, "true_cfg_scale"),
        ({"true_cfg_scale": 21}, "true_cfg_scale"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "x" * 4001}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"negative_prompt": ["x"]}, "negative_prompt"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_format": "PNG"}, "output_format"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": 3601}, "timeout"),
        ({"image_base64": b"bytes"}, "image_base64"),
        ({"image_base64": {"data": PICTURE}}, "image_base64"),
        ({"image_base64": None, "images": PICTURE}, "images"),
        ({"image_base64": None, "images": [PICTURE, 7]}, "images.1"),
        ({"image_base64": None, "images": [PICTURE] * 4}, "images"),
    ],
)
def test_a_wish_of_the_wrong_kind_is_refused_by_name(wishes: dict[str, object], param: str) -> None:
    """true is not 1 and "8" is not 8: a silent conversion hides a bug in the caller."""
    error = refused({"prompt": "p", "image_base64": PICTURE, **wishes})
    assert (error.code, error.param) == ("invalid_parameter", param)


def test_a_bad_number_costs_no_fetch() -> None:
    """The picture would be fetched and decoded for nothing."""
    error = refused({"prompt": "p", "image_url": "https://a.example/not-a-number", "seed": -5})
    assert error.param == "seed"


def test_pictures_named_in_two_ways_are_refused() -> None:
    """Which was meant first would be a guess."""
    assert "two ways" in refused({"prompt": "p", "image": PICTURE, "images": [PICTURE]}).message


def test_a_misspelt_field_is_refused_with_the_right_spelling() -> None:
    """Ignored, it would quietly cost 40 steps instead of 8."""
    error = refused({"prompt": "p", "image_base64": PICTURE, "num_inference_step": 8})
    assert error.code == "unknown_field"
    assert "'num_inference_steps'" in error.message


def test_an_unknown_model_is_refused() -> None:
    """Only what the catalogue holds is ever loaded."""
    assert refused({"prompt": "p", "image_base64": PICTURE, "model": "other/model"}).code == "model_not_found"


@pytest.mark.parametrize("value", [None, [], "x", 1, True, [{"prompt": "p"}]])
def test_an_input_that_is_no_object_is_refused(value: object) -> None:
    """Not every JSON value has fields."""
    assert refused(value).param == "input"


@pytest.mark.parametrize("body", [None, [], "x", {}, {"inputs": {}}, {"input": {}, "prompt": "p"}])
def test_an_envelope_that_is_none_is_refused(body: object) -> None:
    """The bare fields without ``input`` are a usual mistake."""
    with pytest.raises(RequestError):
        unwrap(body)


@pytest.mark.parametrize(
    ("name", "value"), [("webhook", "https://x"), ("policy", {"ttl": 5}), ("s3Config", {"accessId": "x"})]
)
def test_what_only_runpods_queue_can_do_is_refused(name: str, value: object) -> None:
    """Taken with 200 and left undone, the caller would wait for its webhook for ever."""
    with pytest.raises(RequestError) as caught:
        unwrap({"input": {"prompt": "p"}, name: value})
    assert (caught.value.code, caught.value.param) == ("unknown_field", name)
    assert "at once" in caught.value.message
    assert unwrap({"input": {"prompt": "p"}, name: None, "id": "1"}) == {"prompt": "p"}


def test_without_http_a_missing_prompt_has_a_stand_in() -> None:
    """As the worker has always done; an empty one is still a mistake."""
    assert parse({"image_base64": PICTURE}, prompt_fallback=FALLBACK_PROMPT).request.prompt == FALLBACK_PROMPT
    with pytest.raises(RequestError):
        parse({"image_base64": PICTURE, "prompt": " "}, prompt_fallback=FALLBACK_PROMPT)


SECRET = "hunter2-0451"


@pytest.mark.parametrize(
    "wishes",
    [
        {SECRET: 1},
        {"prompt": SECRET},
        {"prompt": "p", "image_url": f"http://127.0.0.1/{SECRET}"},
        {"prompt": "p", "image_base64": SECRET},
        {"prompt": "p", "image": f"data:{SECRET}"},
        {"prompt": "p", "image": PICTURE, "seed": SECRET},
        {"prompt": "p", "image": PICTURE, "output_format": SECRET},
        {"prompt": "p", "image": PICTURE, "model": SECRET},
        {"prompt": SECRET * 1000, "image": PICTURE},
        {"prompt": "p", "images": {SECRET: SECRET}},
    ],
)
def test_no_error_repeats_what_was_sent(wishes: dict[str, object]) -> None:
    """Error texts end up in logs and on pages where a prompt or a signed URL does not belong."""
    with ImageIntake(IntakeOptions(codec_threads=1)) as intake, pytest.raises(ServingError) as caught:
        asyncio.run(FlatDialect(catalog=CATALOG, intake=intake).parse(wishes, id="x"))
    _, body = refuse(caught.value, request_id="r", gpu_available=True)
    assert SECRET not in json.dumps(body)


def test_the_answer_is_flat_and_complete() -> None:
    """``image`` is bare base64 of a file of the size that was asked for."""
    with ImageIntake(IntakeOptions(codec_threads=1)) as intake:
        dialect = FlatDialect(catalog=CATALOG, intake=intake)
        wishes = {"prompt": 'say "hi" — déjà\n', "image": PICTURE, "width": 100, "height": 70, "seed": 7}
        job = asyncio.run(dialect.parse(wishes, id="x"))
        width, height = job.request.canvas
        result = InferenceResult(
            id="x",
            output=Image(pixels=bytes((9, 8, 7)) * (width * height), width=width, height=height),
            model="painter",
            seed=7,
            steps=40,
            lightning_enabled=True,
        )
        body = json.loads(asyncio.run(dialect.render(job, result)))
        assert asyncio.run(dialect.render_output(job, result)) == body
    picture = Pillow.open(io.BytesIO(base64.b64decode(body.pop("image"), validate=True)))
    assert (picture.format, picture.size, picture.getpixel((50, 30))) == ("PNG", (100, 70), (9, 8, 7))
    assert body == {
        "prompt": 'say "hi" — déjà\n',
        "num_inference_steps": 40,
        "lightning_enabled": True,
        "seed": 7,
        "model": "painter",
        "width": 100,
        "height": 70,
        "output_format": "png",
    }
    assert set(FlatAnswer.model_fields) == {"image", *body}


def test_errors_have_the_shape_that_the_first_clients_read() -> None:
    """A string, but on 500 an object; ``error`` and ``code`` beside it for the others."""
    status, body = refuse(refused({"prompt": "p"}), request_id="r", gpu_available=True)
    assert (status, body["detail"]) == (400, "Either image_url or image_base64 required")
    status, body = refuse(ExecutionError("pipeline_error", "m"), request_id="r", gpu_available=True)
    assert status == 500
    assert body["detail"]["error"] == body["error"] == "m"
    assert body["detail"]["gpu_info"] == {"device_count": 1}  # and no null for a GPU that is there
    _, body = refuse(ExecutionError("pipeline_error", "m"), request_id="r", gpu_available=None)
    assert body["detail"]["gpu_info"] == {}
