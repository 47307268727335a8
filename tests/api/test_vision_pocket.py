"""The vision routes against real models, small and untrained, through the batching that serves everybody."""

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from api.app import ApiOptions
from api.vision_kinds import KINDS
from batching.mux import BatchMux, BatchPolicy
from core.service import port
from pipelines.manager import ModelManager
from pipelines.options import ModelOptions
from pipelines.registry import SPECS, catalog
from tests.api.serving import Served, serving
from tests.api.test_vision_document import python_lines
from tests.api.test_vision_masks import read_rle
from tests.api.test_vision_service import ask, encoded, told

POCKETS = {spec.name: spec for spec in SPECS if spec.vision and spec.source.startswith("builtin:")}
WISHES: dict[str, dict[str, Any]] = {
    "sam3": {"prompts": ["cat", "red car"], "threshold": 0.3},
    "grounding_dino": {"prompts": ["cat", "red car"], "box_threshold": 0.05, "text_threshold": 0.05},
    "depth_anything": {"output_format": "npy"},
    "dinov3": {"encoding": "base64"},
}
HERE = [kind for kind in KINDS.values() if any(kind.task in spec.tasks for spec in POCKETS.values())]


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    rows = catalog("pocket-dinov3", allowed=frozenset(POCKETS))
    models = ModelManager(rows, ModelOptions(cache_dir=tmp_path_factory.mktemp("cache"), max_models=4))
    with (
        BatchMux(models.acquire, BatchPolicy()) as mux,
        serving(ApiOptions(profile="vision"), submit=port(mux.submit), catalog=rows) as served,
    ):
        yield served


def noise(seed: int, width: int = 96, height: int = 72) -> str:
    shades = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return encoded(Pillow.fromarray(shades).resize((width, height), Pillow.Resampling.BILINEAR))


def found(answer: Any) -> Any:
    """What does not change from one call to the next."""
    return {name: value for name, value in answer.items() if name != "processing_time"}


@pytest.mark.parametrize("kind", HERE, ids=lambda kind: kind.name)
def test_pictures_of_many_callers_are_answered_each_to_its_own(pocket: Served, kind: Any) -> None:
    """Alone, or beside others in one forward: the same to within what floats allow, and another picture
    another answer."""
    wishes = WISHES[kind.name]

    def one(seed: int) -> Any:
        return found(told(ask(pocket, kind.slug, images=[noise(seed)], **wishes)))

    alone = [one(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as callers:
        together = list(callers.map(one, range(4)))
    for at in range(4):
        assert close(numbers(kind.name, together[at]), numbers(kind.name, alone[at]))
        assert not close(numbers(kind.name, together[at]), numbers(kind.name, alone[at - 1]))


def numbers(name: str, answer: Any) -> Any:
    if name == "depth_anything":
        return np.load(io.BytesIO(base64.b64decode(answer["depth_data"]))).ravel()
    if name == "dinov3":
        return np.frombuffer(base64.b64decode(answer["features"]["last_hidden_state"]), "<f4")
    if name == "grounding_dino":
        return np.array(answer["results"][0]["scores"])
    masks = [one for prompt in answer["results"][0] for one in prompt["result"]["masks_rle"]]
    return np.concatenate([read_rle(mask).ravel() for mask in masks] or [np.zeros(0, np.bool_)])


def close(one: Any, other: Any) -> bool:
    """Of masks, a pixel in a thousand may lie on the very edge."""
    if one.shape != other.shape:
        return False
    if one.dtype == np.bool_:
        return bool((one != other).mean() < 1e-3)
    return bool(np.allclose(one, other, atol=1e-3))


@pytest.mark.parametrize("kind", HERE, ids=lambda kind: kind.name)
def test_what_they_find_can_be_drawn(pocket: Served, kind: Any) -> None:
    """As large as the picture that was sent."""
    wishes = {name: value for name, value in WISHES[kind.name].items() if name not in ("encoding",)}
    answer = ask(pocket, kind.slug, "?render=1", images=[noise(1)], **wishes)
    assert Pillow.open(io.BytesIO(answer.body)).size == (96, 72)


def test_the_printed_lines_of_python(pocket: Served, tmp_path: Path) -> None:
    """Those of the service's documentation, with a model behind them: masks as large as the file."""
    person, car = python_lines(pocket.client.port, tmp_path)["results"][0]
    assert (person["prompt"], car["prompt"]) == ("person", "car")
    for one in (person, car):
        masks = one["result"]["masks"]
        assert len(masks) == len(one["result"]["scores"]) == len(one["result"]["boxes"])
        assert all((len(mask), len(mask[0])) == (60, 80) for mask in masks)


def test_every_kind_that_is_here_is_tried() -> None:
    """A family that is missing would be passed over in silence."""
    assert {kind.name for kind in HERE} == set(KINDS)
