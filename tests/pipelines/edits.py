"""Requests and ways to run them, for tests of image editing pipelines."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from core.pipeline import Pipeline
from core.request import Image, InferenceRequest, Task
from core.result import InferenceResult
from core.spec import PipelineSpec

PROMPTS = (
    "make the sky more dramatic",
    "turn it into a pencil drawing of a house in the snow, with a red car before the door",
    "remove the tree",
    "change the season to winter, and add a bright yellow lamp by the road",
)


def picture(seed: int, width: int = 96, height: int = 96) -> Image:
    """Smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    smooth = pillow.fromarray(coarse).resize((width, height), pillow.Resampling.BICUBIC)
    return Image(
        pixels=smooth.tobytes(), width=width, height=height, digest=f"picture {seed} {width}x{height}"
    )


def ask(spec: PipelineSpec, number: int = 0, **wishes: Any) -> InferenceRequest:
    """An edit that differs from those of other numbers in prompt, picture and seed; 4 steps at 64x64."""
    defaults: dict[str, Any] = {
        "id": f"edit-{number}",
        "task": Task.EDIT,
        "prompt": PROMPTS[number % len(PROMPTS)],
        "images": (picture(number),),
        "width": 64,
        "height": 64,
        "steps": 4,
        "seed": 100 + number,
    }
    return spec.request(**(defaults | wishes))


def run_to_end(pipeline: Pipeline[Any], states: Sequence[Any]) -> None:
    """Tick until all are finished; rows leave as they finish."""
    while running := [state for state in states if not state.finished]:
        pipeline.step(running)


def run_joining(
    pipeline: Pipeline[Any],
    requests: Sequence[InferenceRequest],
    ticks: Sequence[int],
    between: Callable[[int, list[Any]], None] = lambda tick, running: None,
) -> list[Any]:
    """Finished states, when request i joins the running batch before tick ``ticks[i]``.

    between: called before each tick with the running states; it may take some out.
    """
    states: dict[int, Any] = {}
    running: list[Any] = []
    tick = 0
    while running or tick <= max(ticks):
        arriving = [i for i, joins in enumerate(ticks) if joins == tick]
        if arriving:
            prepared = pipeline.prepare([requests[i] for i in arriving])
            states.update(zip(arriving, prepared, strict=True))
            running += prepared
        between(tick, running)
        if running:
            pipeline.step(running)
        running = [state for state in running if not state.finished]
        tick += 1
    return [states[i] for i in range(len(requests))]


def edit(pipeline: Pipeline[Any], request: InferenceRequest) -> InferenceResult:
    """The result of a request that runs alone."""
    states = pipeline.prepare([request])
    run_to_end(pipeline, states)
    return pipeline.decode(states)[0]


def pixels(result: InferenceResult) -> NDArray[np.int16]:
    """[height, width, 3], wide enough to subtract."""
    shape = (result.image.height, result.image.width, 3)
    return np.frombuffer(result.image.pixels, np.uint8).reshape(shape).astype(np.int16)
