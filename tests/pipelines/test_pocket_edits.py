"""The pocket checkpoint does what the prompt says: its pictures mean something.

A drawn picture, which no training saw; how good the edits of photographs are is measured by
``training/evaluate.py``.
"""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from core.request import Image, Task
from core.spec import PipelineSpec
from pipelines.qwen_image import QwenImageEdit
from pipelines.registry import catalog
from tests.pipelines.edits import edit, pixels

Pixels = NDArray[np.int16]


@pytest.fixture(scope="module")
def pocket() -> PipelineSpec:
    """The row as it is served."""
    return catalog("pocket-edit").default


def scene(mirrored: bool = False) -> Image:
    """128x128: an orange sky over green land, and a dark blue disc on the left."""
    down, across = np.mgrid[0:128, 0:128]
    picture = np.empty((128, 128, 3), np.uint8)
    picture[:] = (225, 150, 90)
    picture[down > 80] = (90, 140, 70)
    picture[(down - 60) ** 2 + (across - 36) ** 2 < 24**2] = (40, 50, 120)
    if mirrored:
        picture = picture[:, ::-1]
    return Image(pixels=np.ascontiguousarray(picture).tobytes(), width=128, height=128)


def ask(pipeline: QwenImageEdit, spec: PipelineSpec, prompt: str, *images: Image, seed: int = 1) -> Pixels:
    request = spec.request(
        id=prompt,
        task=Task.EDIT,
        prompt=prompt,
        images=images or (scene(),),
        width=128,
        height=128,
        seed=seed,
    )
    answer: Pixels = pixels(edit(pipeline, request)).reshape(128, 128, 3)
    return answer


def as_array(image: Image) -> Pixels:
    return np.frombuffer(image.pixels, np.uint8).reshape(128, 128, 3).astype(np.int16)


def distance(a: Pixels, b: Pixels) -> float:
    """Root of the mean square, in levels of 0 ... 255."""
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)))


ORIGINAL = as_array(scene())
EXACT: dict[str, Callable[[], Pixels]] = {
    "make this photo black and white": lambda: np.repeat(
        (ORIGINAL @ [0.299, 0.587, 0.114])[..., None], 3, axis=-1
    ).astype(np.int16),
    "please make it brighter": lambda: np.minimum(ORIGINAL + 71, 255),
    "make the picture darker": lambda: (ORIGINAL * 0.4).astype(np.int16),
    "could you invert the colours?": lambda: 255 - ORIGINAL,
    "flip it left to right": lambda: as_array(scene(mirrored=True)),
}


@pytest.mark.parametrize("prompt", EXACT)
def test_an_edit_is_nearer_to_what_was_asked_than_its_input(
    prompt: str, pipeline: QwenImageEdit, pocket: PipelineSpec
) -> None:
    """At most half as far: a model that hands the picture back, or noise, fails."""
    wanted = EXACT[prompt]()
    assert distance(ask(pipeline, pocket, prompt), wanted) < 0.5 * distance(ORIGINAL, wanted)


def test_a_red_border_is_red_and_around(pipeline: QwenImageEdit, pocket: PipelineSpec) -> None:
    """Place and colour both come from the words."""
    framed = ask(pipeline, pocket, "add a red border")
    edge = np.concatenate([framed[:12].reshape(-1, 3), framed[-12:].reshape(-1, 3)]).mean(0)
    assert edge[0] > 150
    assert edge[1:].max() < 100
    assert distance(framed[24:-24, 24:-24], ORIGINAL[24:-24, 24:-24]) < 40


@pytest.mark.parametrize("prompt", ["what time is it?", "add a purple elephant"])
def test_text_it_does_not_know_changes_nothing(
    prompt: str, pipeline: QwenImageEdit, pocket: PipelineSpec
) -> None:
    """A polite refusal; guessing would be worse."""
    assert distance(ask(pipeline, pocket, prompt), ORIGINAL) < 25


def test_a_stronger_word_does_more(pipeline: QwenImageEdit, pocket: PipelineSpec) -> None:
    """Strength words are read."""
    slightly, much = (ask(pipeline, pocket, f"make it {word} darker").mean() for word in ("slightly", "much"))
    assert much < slightly < ORIGINAL.mean()


def test_two_pictures_are_blended(pipeline: QwenImageEdit, pocket: PipelineSpec) -> None:
    """Both references count, each about half."""
    blended = ask(pipeline, pocket, "blend these images", scene(), scene(mirrored=True))
    wanted = (ORIGINAL + as_array(scene(mirrored=True))) // 2
    assert distance(blended, wanted) < 0.7 * distance(ORIGINAL, wanted)


def test_a_mask_keeps_an_edit_to_its_half(pipeline: QwenImageEdit, pocket: PipelineSpec) -> None:
    """What is asked for happens inside; outside not one value changes."""
    halves = np.zeros((128, 128, 3), np.uint8)
    halves[:, :64] = 255
    request = pocket.request(
        id="half",
        task=Task.EDIT,
        prompt="could you invert the colours?",
        images=(scene(),),
        mask=Image(pixels=halves.tobytes(), width=128, height=128),
        width=128,
        height=128,
        seed=1,
    )
    painted, wanted = pixels(edit(pipeline, request)), 255 - ORIGINAL
    assert np.array_equal(painted[:, 64:], ORIGINAL[:, 64:])
    assert distance(painted[:, :64], wanted[:, :64]) < 0.5 * distance(ORIGINAL[:, :64], wanted[:, :64])
