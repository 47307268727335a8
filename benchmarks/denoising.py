"""Our denoising loop against the stock diffusers pipeline, side by side on the pocket checkpoint.

``python -m benchmarks.denoising`` prints a table and exits 1 when a target is missed. Both run in this
process on one thread, in interleaved pairs, with our condition cache off; figures are medians. What is
timed is a whole edit: text, references, denoising and decoding, up to 8-bit pixels.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as upstream
from PIL import Image as pillow

from core.request import Image, InferenceRequest, Task
from core.spec import PipelineSpec
from pipelines.checkpoint import find_checkpoint
from pipelines.options import ModelOptions, Silent
from pipelines.qwen_image import QwenImageEdit, load_edit_plus
from pipelines.qwen_loading import read_processor
from pipelines.registry import catalog

PAIRS = 9
SINGLE_TARGET, MIXED_TARGET = 1.05, 0.6
PROMPTS = (
    "make the sky more dramatic",
    "turn it into a pencil drawing of a house in the snow, with a red car before the door",
    "remove the tree",
    "change the season to winter and the time of day to night, and add a bright yellow lamp by the road",
)
MIXED_STEPS = (4, 8, 8, 12)


def main() -> int:
    torch.set_num_threads(1)
    spec = catalog("pocket-edit").default
    with tempfile.TemporaryDirectory() as folder:
        options = ModelOptions(cache_dir=Path(folder), condition_cache_bytes=0)
        ours = load_edit_plus(spec, options, Silent())
        stock = stock_pipeline(spec, options)
    print(
        f"pocket-edit, fp32, 1 thread, no cache, {PAIRS} interleaved pairs, medians\n"
        f"{'':46}{'whole edit':^32}{'denoising loop alone':^24}\n"
        f"{'':46}{'stock':>8}{'ours':>8}{'ratio':>8}{'target':>8}{'stock':>8}{'ours':>8}{'ratio':>8}"
    )
    missed = False
    for side in (256, 128):
        for label, batch, target in (
            (f"1 request, {spec.steps} steps", requests(spec, side, (spec.steps,)), SINGLE_TARGET),
            (f"1 guided, {spec.steps} steps", requests(spec, side, (spec.steps,), cfg=4.0), SINGLE_TARGET),
            (f"4 requests, steps {MIXED_STEPS}", requests(spec, side, MIXED_STEPS), MIXED_TARGET),
        ):
            whole, loop = compare(partial(run_stock, stock, batch), partial(run, ours, batch))
            missed |= whole.ratio > target
            print(
                f"{f'{side}x{side}, {label}':46}{whole}{target:8.2f}{loop}"
                f"{' MISSED' if whole.ratio > target else ''}"
            )
    return 1 if missed else 0


def requests(
    spec: PipelineSpec, side: int, steps: tuple[int, ...], cfg: float = 1.0
) -> list[InferenceRequest]:
    """One request per step count, ``side`` pixels square; prompts, pictures and seeds differ."""
    return [
        spec.request(
            id=str(number),
            task=Task.EDIT,
            prompt=PROMPTS[number],
            images=(picture(number),),
            width=side,
            height=side,
            steps=count,
            cfg=cfg,
            seed=number,
        )
        for number, count in enumerate(steps)
    ]


def picture(seed: int, side: int = 256) -> Image:
    """Smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    smooth = pillow.fromarray(coarse).resize((side, side), pillow.Resampling.BICUBIC)
    return Image(pixels=smooth.tobytes(), width=side, height=side, digest=f"{seed}/{side}")


def stock_pipeline(spec: PipelineSpec, options: ModelOptions) -> Any:
    """The unchanged diffusers class, at the areas of ``spec``; module constants are its own lever."""
    folder = find_checkpoint(spec, options)
    upstream.CONDITION_IMAGE_SIZE = spec.condition_area
    upstream.VAE_IMAGE_SIZE = spec.reference_area
    pipeline = upstream.QwenImageEditPlusPipeline.from_pretrained(
        folder, processor=read_processor(folder), dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_stock(pipeline: Any, batch: list[InferenceRequest]) -> float:
    """Seconds from each request's first step to its last, all together."""
    loop = 0.0
    for request in batch:
        laps: list[float] = []
        pipeline(
            image=[pillow.frombytes("RGB", image.size, image.pixels) for image in request.images],
            prompt=request.prompt,
            negative_prompt=request.negative_prompt if request.guided else None,
            true_cfg_scale=request.cfg,
            num_inference_steps=request.steps,
            width=request.canvas[0],
            height=request.canvas[1],
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type="np",
            callback_on_step_end=_lap(laps),
            callback_on_step_end_tensor_inputs=[],
        )
        loop += laps[-1] - laps[0]
    return loop


def _lap(laps: list[float]) -> Callable[..., dict[str, Any]]:
    def note(*_: Any) -> dict[str, Any]:
        laps.append(time.perf_counter())
        return {}

    return note


def run(pipeline: QwenImageEdit, batch: list[InferenceRequest]) -> float:
    """All join at once, each leaves when its own steps are done. Seconds from the first tick to the last."""
    running, finished, laps = pipeline.prepare(batch), [], []
    while running:
        pipeline.step(running)
        laps.append(time.perf_counter())
        finished += [state for state in running if state.finished]
        running = [state for state in running if not state.finished]
    pipeline.decode(finished)
    return laps[-1] - laps[0]


class Comparison(NamedTuple):
    stock: float
    ours: float
    ratio: float

    def __str__(self) -> str:
        return f"{self.stock * 1e3:6.0f}ms{self.ours * 1e3:6.0f}ms{self.ratio:8.2f}"


def compare(theirs: Callable[[], float], own: Callable[[], float]) -> tuple[Comparison, Comparison]:
    """Median seconds of both and the median of the pairs' ratios: of the whole, and of the loop alone."""
    theirs(), own()
    pairs = [(timed(theirs), timed(own)) for _ in range(PAIRS)]
    whole, loop = ([(a[part], b[part]) for a, b in pairs] for part in (0, 1))
    return summary(whole), summary(loop)


def summary(pairs: list[tuple[float, float]]) -> Comparison:
    stock, ours = zip(*pairs, strict=True)
    return Comparison(
        statistics.median(stock), statistics.median(ours), statistics.median(b / a for a, b in pairs)
    )


def timed(work: Callable[[], float]) -> tuple[float, float]:
    """Seconds of the whole call, and what it says of its loop."""
    start = time.perf_counter()
    loop = work()
    return time.perf_counter() - start, loop


if __name__ == "__main__":
    sys.exit(main())
