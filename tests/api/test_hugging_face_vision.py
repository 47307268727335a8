"""The Hugging Face tasks that look at a picture, asked by the hub's own client where it has a method."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image as Pillow
from pycocotools import mask as pycocotools
from pycocotools.coco import COCO

from api.app import ApiOptions
from tests.api.findings import VISION
from tests.api.serving import Answer, Served, png, serving
from tests.api.test_hostile import BODIES, check_refusal
from tests.api.test_vision_service import half_red

JSON = {"Content-Type": "application/json"}
TASKS = (
    *("object-detection", "zero-shot-object-detection", "image-segmentation"),
    *("depth-estimation", "image-feature-extraction"),
)
LABELS = "?candidate_labels=Red%20Car,dog"


@pytest.fixture(scope="module")
def seeing() -> Iterator[Served]:
    with serving(catalog=VISION) as running:
        yield running


def raw() -> bytes:
    out = io.BytesIO()
    half_red().save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def client(seeing: Served) -> Callable[[str], InferenceClient]:
    def make(address: str) -> InferenceClient:
        url = f"http://127.0.0.1:{seeing.client.port}/hf/{address}"
        return InferenceClient(base_url=url, provider="hf-inference", token="hf_x")

    return make


def ask(seeing: Served, address: str, headers: dict[str, str] | None = None, **parameters: Any) -> Answer:
    body = {"inputs": base64.b64encode(raw()).decode(), "parameters": parameters}
    return seeing.client.request("POST", f"/hf/{address}", json.dumps(body).encode(), JSON | (headers or {}))


def test_object_detection(client: Callable[[str], InferenceClient]) -> None:
    """The client has no place for labels but the address; with a threshold it sends JSON, else the file."""
    finder = client(f"object-detection{LABELS}")
    first, second = finder.object_detection(raw())
    assert (first.label, first.score) == ("Red Car", 0.9)
    assert first.box.xmin == 0
    assert (first.box.ymin, first.box.xmax, first.box.ymax) == (1, 10, 12)
    assert second.label == "dog"
    (only,) = finder.object_detection(raw(), threshold=0.85)
    assert only.label == "Red Car"


def test_detection_of_nothing_in_particular_is_refused(client: Callable[[str], InferenceClient]) -> None:
    """The models of this server find what they are told, and the client shows the sentence that says so."""
    with pytest.raises(HfHubHTTPError, match=r"\?candidate_labels=cat,dog in the address") as caught:
        client("object-detection").object_detection(raw())
    assert caught.value.response.status_code == 422


def test_zero_shot_object_detection(seeing: Served) -> None:
    """Labels are a parameter of the standard."""
    answer = ask(seeing, "zero-shot-object-detection", candidate_labels=["a", "b"], threshold=0.85)
    assert answer.json() == [
        {"label": "a", "score": 0.9, "box": {"xmin": 0, "ymin": 1, "xmax": 10, "ymax": 12}}
    ]


def test_image_segmentation(client: Callable[[str], InferenceClient]) -> None:
    """The client turns each mask into a picture."""
    first, second = client(f"image-segmentation{LABELS}").image_segmentation(
        raw(), threshold=0.5, mask_threshold=0.4, overlap_mask_area_threshold=0.5, subtask="instance"
    )
    assert (first.label, second.label, first.score) == ("Red Car", "dog", 0.9)
    mask: Any = first.mask
    assert (mask.mode, mask.size) == ("L", (80, 60))
    assert (np.asarray(mask) > 0).sum() == 40 * 60


def test_depth_estimation(seeing: Served) -> None:
    """A picture, and the numbers it was made of."""
    answer = ask(seeing, "depth-estimation").json()
    assert Pillow.open(io.BytesIO(base64.b64decode(answer["depth"]))).size == (80, 60)
    told = answer["predicted_depth"]
    numbers = np.frombuffer(base64.b64decode(told["data"]), "<f4").reshape(told["shape"])
    assert np.array_equal(numbers, np.asarray(half_red())[..., 0])
    assert (answer["kind"], answer["unit"]) == ("depth", "relative")


def test_depth_of_too_large_a_picture_is_refused() -> None:
    """Its numbers are four bytes a pixel; MAX_ANSWER_MB holds for every JSON of a vision model."""
    values = 80 * 60 * 4 // 3 * 4
    for most, status in ((values - 1, 422), (values + 1, 422), (values + 2000, 200)):
        with serving(ApiOptions(max_answer_bytes=most), catalog=VISION) as small:
            answer = ask(small, "depth-estimation")
            assert answer.status == status, answer.body[:200]
            if status == 422:
                assert f"over the limit of {most}; ask for a smaller picture" in answer.json()["error"]


def test_image_feature_extraction(client: Callable[[str], InferenceClient], seeing: Served) -> None:
    """As the pipeline of that name gives them: [1, tokens, width], or pooled [1, width]."""
    features = client("image-feature-extraction").feature_extraction(base64.b64encode(raw()).decode())
    assert features.shape == (1, 5, 8)
    assert features[0, 0, 0] == pytest.approx(100.0)
    pooled = np.array(ask(seeing, "image-feature-extraction", pool=True, normalize=True).json())
    assert pooled.shape == (1, 8)
    assert np.linalg.norm(pooled) == pytest.approx(1.0, abs=1e-5)


def test_the_model_may_be_named(client: Callable[[str], InferenceClient]) -> None:
    """In the address, as for every other task; one that cannot do it is refused with those that can."""
    assert client(f"object-detection{LABELS}&model=org/finder").object_detection(raw())
    with pytest.raises(HfHubHTTPError, match="diver cannot detect; served here to detect: finder"):
        client(f"object-detection{LABELS}&model=diver").object_detection(raw())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("task", ["object-detection", "image-segmentation"])
def test_coco_is_what_cocos_own_reader_takes(seeing: Served, task: str) -> None:
    """Indexed and decoded by pycocotools."""
    answer = ask(seeing, f"{task}{LABELS}&format=coco").json()
    coco = COCO()
    coco.dataset = answer
    coco.createIndex()
    assert [one["name"] for one in coco.loadCats(coco.getCatIds())] == ["Red Car", "dog"]
    first, _ = coco.loadAnns(coco.getAnnIds(imgIds=1))
    assert first["score"] == 0.9
    if task == "image-segmentation":
        assert first["area"] == coco.annToMask(first).sum() == 40 * 60
        assert pycocotools.area(first["segmentation"]) == 40 * 60
    else:
        assert first["bbox"] == [0.0, 1.0, 10.5, 11.0]


def test_format_is_for_tasks_that_find_objects(seeing: Served) -> None:
    """Elsewhere, and for other words, it is refused."""
    assert ask(seeing, "depth-estimation?format=coco").status == 422
    assert ask(seeing, f"object-detection{LABELS}&format=voc").status == 422


@pytest.mark.parametrize("task", TASKS)
def test_a_picture_is_drawn_for_who_takes_nothing_else(seeing: Served, task: str) -> None:
    """As the services of other pictures do."""
    answer = ask(seeing, f"{task}{LABELS}", {"Accept": "image/png"})
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    assert Pillow.open(io.BytesIO(answer.body)).size == (80, 60)


@pytest.mark.parametrize("task", TASKS)
def test_the_health_check(client: Callable[[str], InferenceClient], task: str) -> None:
    """The client asks below its address."""
    assert client(task).health_check()


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"candidate_labels": "cat"}, "should be a list of texts"),
        ({"candidate_labels": [1]}, "should be a list of texts"),
        ({"candidate_labels": ["a"] * 300}, "300 candidate_labels are over the limit of 64"),
        ({"candidate_labels": ["a" * 3000]}, "over the limit of 2000"),
        ({"candidate_labels": [" "]}, "one of candidate_labels is empty"),
        ({"candidate_labels": ["a"], "threshold": 2}, "threshold"),
        ({"candidate_labels": ["a"], "treshold": 0.5}, "did you mean 'threshold'?"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(seeing: Served, parameters: dict[str, Any], sentence: str) -> None:
    """In ``error``, which is all that the client shows."""
    answer = ask(seeing, "zero-shot-object-detection", **parameters)
    assert (answer.status, sentence in answer.json()["error"]) == (422, True), answer.body
    check_refusal(answer)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", BODIES)
def test_bodies_of_another_dialect_do_no_harm(name: str, task: str, seeing: Served) -> None:
    """What breaks a reader of JSON breaks all of them."""
    content, _ = BODIES[name]
    answer = seeing.client.request("POST", f"/hf/{task}", content, JSON)
    assert 400 <= answer.status < 500, answer.body
    check_refusal(answer)


def test_a_picture_that_is_none(seeing: Served) -> None:
    """Raw, as the client sends it."""
    answer = seeing.client.request("POST", f"/hf/object-detection{LABELS}", png()[:50])
    assert (answer.status, "cannot be read" in answer.json()["error"]) == (422, True)
