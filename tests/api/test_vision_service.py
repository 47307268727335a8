"""The vision routes over real HTTP, in the words of their first clients."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from api.app import ApiOptions
from api.images import ImageLimits
from api.intake import IntakeOptions
from core.request import InferenceRequest, Task
from core.vision import Segment
from tests.api.findings import VISION, score
from tests.api.serving import PAINTER, Answer, Served, png, serving, text
from tests.api.test_hostile import BODIES, SECRET, bomb, check_refusal
from tests.api.test_vision_masks import read_lists, read_rle

JSON = {"Content-Type": "application/json"}
SLUGS = ("sam3", "grounding-dino", "depth-anything", "dinov3")


@pytest.fixture(scope="module")
def seeing() -> Iterator[Served]:
    api = ApiOptions(profile="vision", max_answer_bytes=200_000, max_request_pixels=50_000)
    with serving(api, IntakeOptions(codec_threads=2), catalog=VISION) as running:
        yield running


def half_red(width: int = 80, height: int = 60, red: int = 200) -> Pillow.Image:
    """Red on its left half."""
    picture = Pillow.new("RGB", (width, height))
    picture.paste((red, 0, 0), (0, 0, width // 2, height))
    return picture


def encoded(picture: Pillow.Image, kind: str = "PNG") -> str:
    out = io.BytesIO()
    picture.save(out, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return text(out.getvalue())


PICTURE = encoded(half_red())


def ask(seeing: Served, slug: str, query: str = "", accept: str = "*/*", **fields: Any) -> Answer:
    body = {"images": [PICTURE]} | fields
    path = f"/inference/{slug}{query}"
    return seeing.client.request("POST", path, json.dumps(body).encode(), JSON | {"Accept": accept})


def told(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    return answer.json()


def asked(seeing: Served, count: int = 1) -> list[InferenceRequest]:
    """What reached the model last."""
    found = [seeing.painter.entered.get(timeout=5) for _ in range(count)]
    while not seeing.painter.entered.empty():
        found = [*found[1:], seeing.painter.entered.get()]
    return found


def test_segmentation_as_it_was_always_answered(seeing: Served) -> None:
    """rle where nothing is named; both names of scores; prompts by index and in the caller's spelling."""
    answer = told(ask(seeing, "sam3", prompts=["Person", "car"]))
    assert answer.keys() == {"results", "model_id", "processing_time"}
    assert answer["model_id"] == "org/cutter"
    assert 0 < answer["processing_time"] < 20
    ((first, second),) = answer["results"]
    assert (first["prompt_index"], first["prompt"]) == (0, "Person")
    assert (second["prompt_index"], second["prompt"]) == (1, "car")
    result = first["result"]
    assert result.keys() == {"scores", "iou_scores", "boxes", "masks_rle"}
    assert result["scores"] == result["iou_scores"] == [score(0)]
    assert result["boxes"] == [[0.0, 0.0, 80.0, 60.0]]
    assert np.array_equal(read_rle(result["masks_rle"][0]), np.asarray(half_red())[..., 0] > 100)


def test_each_form_of_masks_has_its_name(seeing: Served) -> None:
    """As clients look them up."""
    names = {
        **{"rle": {"masks_rle"}, "dense": {"masks"}, "coco_rle": {"masks_coco_rle"}, "png": {"masks_png"}},
        "polygons": {"masks_polygon", "masks_polygon_holes"},
        "polygon": {"masks_polygon", "masks_polygon_holes"},
    }
    for form, keys in names.items():
        answer = told(ask(seeing, "sam3", prompts=["a"], output_format=form))
        result = answer["results"][0][0]["result"]
        assert result.keys() - {"scores", "iou_scores", "boxes"} == keys
    answer = told(ask(seeing, "sam3", prompts=["a"], output_format="polygons"))
    assert answer["results"][0][0]["result"]["masks_polygon"] == [
        [[[0.0, 0.0], [40.0, 0.0], [40.0, 60.0], [0.0, 60.0]]]
    ]
    dense = told(ask(seeing, "sam3", prompts=["a"], output_format="dense"))["results"][0][0]["result"]
    assert read_lists(dense["masks"][0]).sum() == 40 * 60


def test_prompts_may_differ_from_picture_to_picture(seeing: Served) -> None:
    """Each picture becomes a request of its own, and its answer stands in its place."""
    other = encoded(half_red(40, 30, red=10))
    answer = told(ask(seeing, "sam3", images=[PICTURE, other], prompts=[["a"], ["b", "c"]]))
    assert [[one["prompt"] for one in each] for each in answer["results"]] == [["a"], ["b", "c"]]
    assert answer["results"][1][0]["result"]["masks_rle"][0]["size"] == [30, 40]
    first, second = asked(seeing, 2)
    assert (first.size, second.size) == ((80, 60), (40, 30))
    assert first.id != second.id
    refused = ask(seeing, "sam3", images=[PICTURE, other], prompts=[["a"]])
    assert refused.status == 422
    assert "1 lists of prompts for 2 images; send one for each" in refused.json()["error"]


@pytest.mark.parametrize(
    ("wish", "priors"), [(False, None), (True, (1.0, 1.0)), ([2, 0.5], (2.0, 0.5))], ids=str
)
def test_overlaps(seeing: Served, wish: object, priors: object) -> None:
    """Left as they are, or each pixel goes to one, by weights of the prompts where they are named."""
    told(ask(seeing, "sam3", prompts=["a", "b"], resolve_overlaps=wish))
    (request,) = asked(seeing)
    assert isinstance(request.ask, Segment)
    assert request.ask.priors == priors


def test_boxes_are_examples(seeing: Served) -> None:
    """For each picture and prompt; what a fifth number of 0 marks is left out."""
    told(ask(seeing, "sam3", boxes=[[[[1, 2, 30, 40], [50, 5, 60, 20, 0]]]]))
    (request,) = asked(seeing)
    assert isinstance(request.ask, Segment)
    (prompt,) = request.ask.prompts
    assert prompt.boxes == (((1.0, 2.0, 30.0, 40.0), True), ((50.0, 5.0, 60.0, 20.0), False))
    assert (
        "not inside the picture of 80x60" in ask(seeing, "sam3", boxes=[[[[1, 2, 300, 40]]]]).json()["error"]
    )


def test_detections_as_clients_zip_them(seeing: Served) -> None:
    """Labels in the caller's own spelling, beside scores and boxes of the same length."""
    answer = told(ask(seeing, "grounding-dino", images=[PICTURE, PICTURE], prompts=["Red Car", "dog"]))
    for one in answer["results"]:
        assert one == {
            "scores": [0.9, 0.8],
            "labels": ["Red Car", "dog"],
            "boxes": [[0.0, 1.0, 10.5, 12.0], [1.0, 1.0, 11.5, 12.0]],
            "text_labels": ["red car", "dog"],
            "class_ids": [0, 1],
        }
    few = told(ask(seeing, "grounding-dino", prompts=["Red Car", "dog"], box_threshold=0.85))
    assert few["results"][0]["labels"] == ["Red Car"]


def test_depth_is_a_grey_picture(seeing: Served) -> None:
    """Of the first picture, as clients open it; its ends are told, so that it can be undone."""
    answer = told(ask(seeing, "depth-anything", export_format="glb"))
    assert answer["format"] == "png_base64"
    picture = Pillow.open(io.BytesIO(base64.b64decode(answer["depth_data"])))
    assert (picture.mode, picture.size) == ("L", (80, 60))
    assert picture.getextrema() == (0, 255)
    metadata = answer["metadata"]
    assert (metadata["shape"], metadata["kind"], metadata["unit"]) == ([1, 60, 80], "depth", "relative")
    assert (metadata["min"], metadata["max"]) == (0.0, 200.0)
    assert "no glb is made here" in metadata["export"]


def test_depth_in_other_forms(seeing: Served) -> None:
    """Sixteen bits and numbers lose nothing; npz stands beside what was always there."""
    red = np.asarray(half_red())[..., 0]
    form = {
        name: base64.b64decode(told(ask(seeing, "depth-anything", output_format=name))["depth_data"])
        for name in ("png16", "npy", "colour")
    }
    sixteen = np.asarray(Pillow.open(io.BytesIO(form["png16"])))
    assert np.array_equal(np.rint(sixteen / 65535 * 200), red)
    assert np.array_equal(np.load(io.BytesIO(form["npy"])), red)
    assert Pillow.open(io.BytesIO(form["colour"])).mode == "RGB"
    answer = told(ask(seeing, "depth-anything", export_format="npz"))
    assert np.array_equal(np.load(io.BytesIO(base64.b64decode(answer["export"]["data"])))["depth"][0], red)
    several = told(ask(seeing, "depth-anything", images=[PICTURE, encoded(half_red(8, 6))]))
    assert [one["metadata"]["shape"] for one in several["results"]] == [[1, 60, 80], [1, 6, 8]]


def test_features_are_nested_lists(seeing: Served) -> None:
    """As numpy.array takes them, stacked by picture."""
    answer = told(ask(seeing, "dinov3", images=[PICTURE, PICTURE]))["features"]
    tokens = np.array(answer["last_hidden_state"])
    assert list(tokens.shape) == answer["last_hidden_state_shape"] == [2, 5, 8]
    assert np.array(answer["pooler_output"]).shape == (2, 8)
    assert (answer["patch_grid"], answer["first_patch"]) == ([2, 2], 1)
    assert tokens[0, 0, 0] == pytest.approx(100.0)


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "<f4"), ("float16", "<f2")])
def test_features_in_base64_are_the_same_numbers(seeing: Served, dtype: str, kind: str) -> None:
    """In a tenth of the bytes."""
    lists = told(ask(seeing, "dinov3", normalize=True))["features"]
    short = told(ask(seeing, "dinov3", normalize=True, encoding="base64", dtype=dtype))["features"]
    numbers = np.frombuffer(base64.b64decode(short["last_hidden_state"]), kind)
    numbers = numbers.reshape(short["last_hidden_state_shape"]).astype(np.float64)
    assert np.allclose(numbers, np.array(lists["last_hidden_state"]), atol=1e-3)
    assert np.allclose(np.linalg.norm(numbers, axis=-1), 1, atol=1e-2)
    assert "last_hidden_state" not in told(ask(seeing, "dinov3", pooled_only=True))["features"]


@pytest.mark.parametrize(
    "picture",
    [
        f"data:image/png;base64,{PICTURE}",
        {"data": PICTURE},
        {"data": f"data:image/png;base64,{PICTURE}", "format": "base64"},
        encoded(half_red(), "WEBP"),
    ],
    ids=["data uri", "object", "object of a data uri", "webp"],
)
def test_pictures_as_clients_write_them(seeing: Served, picture: object) -> None:
    """All of them are the same picture."""
    answer = told(ask(seeing, "sam3", images=[picture], prompts=["a"]))
    assert read_rle(answer["results"][0][0]["result"]["masks_rle"][0]).sum() == 40 * 60


@pytest.mark.parametrize("slug", SLUGS)
def test_what_was_found_can_be_drawn(seeing: Served, slug: str) -> None:
    """By a word in the address, or for those who take nothing else."""
    prompts: dict[str, Any] = {"prompts": ["a"]} if slug in ("sam3", "grounding-dino") else {}
    for answer in (
        ask(seeing, slug, "?render=1", **prompts),
        ask(seeing, slug, accept="image/png", **prompts),
    ):
        assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
        drawn = Pillow.open(io.BytesIO(answer.body))
        assert (drawn.mode, drawn.size) == ("RGB", (80, 60))
        assert len(drawn.getcolors(80 * 60) or ()) > 1
        assert drawn.tobytes() != half_red().tobytes()
    refused = ask(seeing, slug, "?render=1", images=[PICTURE, PICTURE], **prompts)
    assert (refused.status, "draws on one; send one" in refused.json()["error"]) == (422, True)


def test_a_model_may_be_named_in_any_way(seeing: Served) -> None:
    """By name, alias or hub id; one that cannot do it, or is not here, is answered with those that are."""
    for name in ("cutter", "SAM3", "org/cutter"):
        assert told(ask(seeing, "sam3", prompts=["a"], model_id=name))["model_id"] == "org/cutter"
    unable = ask(seeing, "sam3", prompts=["a"], model_id="diver")
    assert unable.status == 422
    assert unable.json()["error"] == "diver cannot segment; served here to segment: cutter"
    unknown = ask(seeing, "dinov3", model_id="facebook/nothing")
    assert (unknown.status, unknown.json()["detail"]) == (
        404,
        "no such model here; served here to embed: feeler",
    )


def test_a_server_without_such_a_model_says_so() -> None:
    """And what to do about it."""
    with serving() as running:
        answer = ask(running, "sam3", prompts=["a"])
    assert PAINTER.tasks == {Task.EDIT}
    assert (answer.status, answer.json()["detail"]) == (
        404,
        "no model here can segment; add one to ALLOWED_MODELS",
    )


LARGE = text(png(300, 200))
REFUSED: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "no picture": ("sam3", {"images": [], "prompts": ["a"]}, 422, ""),
    "too many pictures": ("dinov3", {"images": [PICTURE] * 33}, 422, "33 images are over the limit of 32"),
    "too many pixels": ("dinov3", {"images": [LARGE]}, 413, "limit of 50000 pixels together"),
    "no prompts": ("sam3", {}, 422, "there is no prompt"),
    "an empty prompt": ("sam3", {"prompts": [" "]}, 422, "one of prompts is empty"),
    "300 prompts": ("sam3", {"prompts": ["a"] * 300}, 422, "300 prompts are over the limit of 64"),
    "300 labels": ("grounding-dino", {"prompts": ["a"] * 300}, 422, "300 prompts are over the limit of 64"),
    "2000 prompts": ("sam3", {"prompts": ["a"] * 2000}, 422, "over the limit of 1000"),
    "a long prompt": ("sam3", {"prompts": ["a" * 3000]}, 422, "over the limit of 2000"),
    "threshold": ("sam3", {"prompts": ["a"], "threshold": 1.5}, 422, "less than or equal to 1"),
    "threshold is text": ("sam3", {"prompts": ["a"], "threshold": "0.5"}, 422, ""),
    "a weight of false": (
        "sam3",
        {"prompts": ["a"], "resolve_overlaps": [False]},
        422,
        "should be true, false",
    ),
    "weights": ("sam3", {"prompts": ["a"], "resolve_overlaps": [1, 2]}, 422, "2 weights for 1 prompts"),
    "a weight below 0": (
        "sam3",
        {"prompts": ["a"], "resolve_overlaps": [-1]},
        422,
        "resolve_overlaps -1.0 is",
    ),
    "boxes of nothing": ("sam3", {"prompts": ["a"], "boxes": [[]]}, 422, "boxes of 0 prompts for 1 prompts"),
    "a box of three": ("sam3", {"boxes": [[[[1, 2, 3]]]]}, 422, ""),
    "a box inside out": ("sam3", {"boxes": [[[[9, 9, 3, 3]]]]}, 422, "right > left"),
    "focal": ("depth-anything", {"focal": 0.0}, 422, "focal 0.0 is outside"),
    "export": ("depth-anything", {"export_format": "stl"}, 422, "glb"),
    "misspelt": ("dinov3", {"normalise": True}, 422, "did you mean 'normalize'?"),
    "no image": ("dinov3", {"images": ["bm9uZQ=="]}, 400, "cannot be read"),
    "a file": ("dinov3", {"images": ["file:///etc/passwd"]}, 400, ""),
    "an inner address": ("dinov3", {"images": [{"data": "http://127.0.0.1/x", "format": "url"}]}, 400, ""),
    "no url": ("dinov3", {"images": [{"data": PICTURE, "format": "url"}]}, 422, "format is url"),
    "a bomb": ("dinov3", {"images": [bomb(50_000)]}, 413, ""),
    "more in a picture": ("dinov3", {"images": [{"data": PICTURE, SECRET: 1}]}, 422, ""),
    "a secret as model": ("dinov3", {"model_id": SECRET}, 404, ""),
    "a secret as name": ("dinov3", {SECRET: 1}, 422, ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_name(seeing: Served, name: str) -> None:
    """In ``detail``, with the limit, and before any device is asked."""
    slug, fields, status, sentence = REFUSED[name]
    while not seeing.painter.entered.empty():
        seeing.painter.entered.get()
    answer = ask(seeing, slug, **fields)
    assert answer.status == status, answer.body
    assert sentence in answer.json()["error"]
    assert answer.json()["detail"]
    check_refusal(answer)
    assert seeing.painter.entered.empty()


def test_a_refusal_names_the_field_without_its_detail(seeing: Served) -> None:
    """A job's ``error`` is one sentence: it says which field or picture, and names no class of ours."""
    missing = ask(seeing, "grounding-dino").json()
    assert missing["error"] == "prompts: Field required"
    assert missing["detail"] == [{"type": "missing", "loc": ["body", "prompts"], "msg": "Field required"}]
    broken = ask(seeing, "dinov3", images=[PICTURE, "bm9uZQ=="]).json()
    assert broken["error"].startswith("images.1: the image cannot be read")
    assert broken["param"] == "images.1"
    assert ask(seeing, "dinov3", images=["bm9uZQ=="]).json()["error"].startswith("the image cannot")
    none = seeing.client.request("POST", "/inference/sam3", b"[]", JSON).json()
    assert (none["error"], "Sam3" in none["detail"][0]["msg"]) == ("the body: should be an object", False)


@pytest.mark.parametrize("slug", SLUGS)
@pytest.mark.parametrize("name", BODIES)
def test_bodies_of_another_dialect_do_no_harm(name: str, slug: str, seeing: Served) -> None:
    """NaN, depth, duplicates and halves of characters: what breaks a reader of JSON breaks all of them."""
    content, _ = BODIES[name]
    answer = seeing.client.request("POST", f"/inference/{slug}", content, JSON)
    assert 400 <= answer.status < 500, answer.body
    check_refusal(answer)


def test_a_long_answer_is_refused_before_it_is_made(seeing: Served) -> None:
    """Lists of pixels grow with the square of a picture; the sentence names the limit and what to ask for."""
    picture = encoded(half_red(220, 200))
    answer = ask(seeing, "sam3", images=[picture], prompts=["a", "b", "c"], output_format="dense")
    assert answer.status == 422
    assert 'over the limit of 200000; ask for output_format "rle"' in answer.json()["error"]
    assert told(ask(seeing, "sam3", images=[picture], prompts=["a", "b", "c"]))
    depth = ask(seeing, "depth-anything", images=[picture], output_format="npy")
    assert (depth.status, "MAX_ANSWER_MB" in depth.json()["error"]) == (422, True)


def test_too_large_a_picture_is_told_by_its_header() -> None:
    """As for every other route."""
    images = IntakeOptions(limits=ImageLimits(max_pixels=1000), codec_threads=1)
    with serving(images=images, catalog=VISION) as running:
        answer = ask(running, "dinov3")
    assert (answer.status, "limit of 1000 pixels" in answer.json()["error"]) == (413, True)


def test_a_default_that_cannot_be_loaded_stops_no_other_model() -> None:
    """A gated checkpoint without its token must not take three others with it; a drain stops all."""
    with serving(catalog=VISION) as running:
        running.probe.say("failed", "accept the licence of the default")
        assert told(ask(running, "dinov3"))
        assert running.client.request("POST", "/run", b"{}", JSON).status == 503
        running.probe.say("draining")
        assert ask(running, "dinov3").status == 503
