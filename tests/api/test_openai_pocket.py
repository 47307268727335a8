"""OpenAI's client against real pipelines, small ones, through the batching that serves everybody."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image as Pillow

from batching.mux import BatchMux, BatchPolicy
from core.service import port
from pipelines.manager import ModelManager
from pipelines.options import ModelOptions
from pipelines.registry import catalog
from tests.api.serving import Served, png, serving
from tests.api.test_openai_images import connect


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    rows = catalog("pocket-edit", allowed=frozenset({"pocket-sdxl"}))
    models = ModelManager(rows, ModelOptions(cache_dir=tmp_path_factory.mktemp("cache")))
    with (
        BatchMux(models.acquire, BatchPolicy()) as mux,
        serving(submit=port(mux.submit), catalog=rows) as served,
    ):
        yield served


def opened(text: str | None) -> Pillow.Image:
    assert text is not None
    return Pillow.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


@pytest.mark.parametrize("model", ["pocket-edit", "pocket-sdxl"])
def test_both_families_stream_previews_of_what_comes(pocket: Served, model: str) -> None:
    """Three of four steps are shown, each as large as the result and unlike the one before."""
    with connect(pocket) as client:
        events = list(
            client.images.edit(
                model=model,
                image=("in.png", png(128, 96, (200, 30, 30))),
                prompt="make it night",
                stream=True,
                partial_images=3,
                extra_body={"seed": 1, "strength": 1.0} if model == "pocket-sdxl" else {"seed": 1},
            )
        )
    assert [event.type for event in events] == [*["image_edit.partial_image"] * 3, "image_edit.completed"]
    pictures = [opened(event.b64_json) for event in events]
    assert {picture.size for picture in pictures} == {(128, 96)}
    assert len({picture.tobytes() for picture in pictures}) == 4


def test_a_seed_gives_the_same_picture_alone_and_among_others(pocket: Served) -> None:
    """``n`` pictures are rows like any other."""
    with connect(pocket) as client:
        several = client.images.generate(
            prompt="a lamp", n=3, size="64x64", quality="low", extra_body={"seed": 5}
        )
        alone = client.images.generate(prompt="a lamp", size="64x64", quality="low", extra_body={"seed": 6})
    assert several.data is not None
    assert alone.data is not None
    pictures = [opened(one.b64_json) for one in (*several.data, *alone.data)]
    far = [abs(a - b) for a, b in zip(pictures[1].tobytes(), pictures[3].tobytes(), strict=True)]
    assert max(far) <= 2
    assert pictures[0].tobytes() != pictures[1].tobytes()


def test_a_mask_keeps_the_rest(pocket: Served, tmp_path: Path) -> None:
    """What is opaque in the mask comes back as it was."""
    colour = (10, 120, 200)
    mask = Pillow.new("RGBA", (128, 128), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 128))
    mask.save(tmp_path / "mask.png")
    with connect(pocket) as client, open(tmp_path / "mask.png", "rb") as file:
        answer = client.images.edit(
            model="pocket-edit", image=("in.png", png(128, 128, colour)), mask=file, prompt="remove the tree"
        )
    assert answer.data is not None
    assert opened(answer.data[0].b64_json).getpixel((120, 64)) == colour
