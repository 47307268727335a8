"""Times of the full-size Qwen-Image-Edit models in each precision, beside the stock diffusers call.

``python -m benchmarks.gpu`` draws random weights of the real sizes on the card, one precision after another,
and prints a line for each size and batch as it is measured. Without a GPU it runs the same with the pocket's
sizes. What fails, for want of memory or of a library, is a line too; what the time budget leaves out is
said. The reference picture is as large as the row asks, 1024x1024 at full size; guidance is off.
"""

import argparse
import gc
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as upstream
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image as pillow

from benchmarks.denoising import PROMPTS, picture
from benchmarks.random_models import autoencoder, text_encoder, transformer
from core.errors import ServingError
from core.request import InferenceRequest, Task
from core.spec import PipelineSpec
from pipelines.device import finish, pick_device
from pipelines.loading import Loader
from pipelines.options import ModelOptions, Precision, Silent, Tuning
from pipelines.qwen_image import QwenImageEdit
from pipelines.qwen_loading import Components, read_processor
from pipelines.qwen_text import NUMBERED_PICTURES
from pipelines.registry import catalog

PRECISIONS: dict[str, Precision] = {
    "bf16": Precision(),
    "8bit fp8-layerwise": Precision(mode="8bit", eight_bit="fp8-layerwise"),
    "8bit torchao-int8": Precision(mode="8bit", eight_bit="torchao-int8"),
    "8bit torchao-fp8": Precision(mode="8bit", eight_bit="torchao-fp8"),
    "8bit bitsandbytes": Precision(mode="8bit", eight_bit="bitsandbytes"),
    "4bit": Precision(mode="4bit"),
}
STEPS = (4, 8, 40)
MEASURED_STEPS = 6  # of ours, the first left out: a step costs the same wherever in the schedule it is
GIB = 2**30


@dataclass(frozen=True)
class Times:
    """Seconds: of the part before the steps, of one step, of the part after them."""

    prepare: float
    step: float
    decode: float

    def __str__(self) -> str:
        wholes = "".join(f"{self.prepare + steps * self.step + self.decode:9.2f}" for steps in STEPS)
        return f"{self.prepare:9.3f}{self.step:9.3f}{self.decode:9.3f}{wholes}"


def main() -> int:
    return benchmark(arguments())


def benchmark(asked: argparse.Namespace) -> int:
    """0 however many cells fail: there is no target to miss."""
    started = time.monotonic()
    device = pick_device()
    full = device.type == "cuda"
    asked.budget = (1500.0 if full else 60.0) if asked.budget is None else asked.budget
    sizes = asked.sizes or ([512, 1024] if full else [64, 128])
    spec = replace(
        catalog("qwen-image-edit-2511" if full else "pocket-edit").default, source="builtin:pocket-edit"
    )
    announce(device, spec, asked.budget)
    with tempfile.TemporaryDirectory() as folder:
        options = ModelOptions(cache_dir=Path(folder), condition_cache_bytes=0)
        for compiled, label in itertools.product((False, True), asked.precisions):
            if compiled and not asked.compile:
                continue
            name = f"{label}{', compiled' if compiled else ''}"
            if compiled and PRECISIONS[label].eight_bit == "fp8-layerwise":
                print(f"{name:28} not run: the settings refuse it")
                continue
            if time.monotonic() - started > asked.budget:
                print(f"{name:28} not run: the budget of {asked.budget:.0f} s is spent")
                continue
            chosen = replace(options, precision=PRECISIONS[label], tuning=Tuning(compile=compiled))
            with told(name), fresh_memory():
                measure(name, spec, chosen, device, sizes, asked, started, full)
    return 0


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--budget", type=float, help="seconds after which nothing new is begun (default: 1500; 60 on a CPU)"
    )
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--sizes", nargs="+", type=int, help="sides of square outputs in pixels")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument(
        "--no-compile", dest="compile", action="store_false", help="leave the compiled half out"
    )
    return parser.parse_args(words)


def announce(device: torch.device, spec: PipelineSpec, budget: float) -> None:
    where = "no GPU here: the pocket's sizes on one thread of a CPU"
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        where = f"{card.name}, {card.total_memory / GIB:.0f} GiB, sm{card.major}{card.minor}, full size"
    print(
        f"{where}; torch {torch.__version__}, {date.today()}; random weights, seconds\n"
        f"edits of one reference, guidance off; whole edits are prepare + steps x step + decode; "
        f"budget {budget:.0f} s\n"
        f"{'':28}{'side':>6}{'batch':>6}{'prepare':>9}{'step':>9}{'decode':>9}"
        + "".join(f"{f'{steps} steps':>9}" for steps in STEPS)
        + f"{'peak GiB':>10}"
    )


def measure(
    name: str,
    spec: PipelineSpec,
    options: ModelOptions,
    device: torch.device,
    sizes: list[int],
    asked: argparse.Namespace,
    started: float,
    full: bool,
) -> None:
    """One line for each size and batch, and for plain bf16 the stock pipeline's beside them."""
    begun = time.monotonic()
    parts, stock_vae = draw(spec, options, device, full=full)
    ours = QwenImageEdit(parts, NUMBERED_PICTURES, cache_bytes=0)
    finish(device)
    print(f"{name:28} drawn and placed in {time.monotonic() - begun:.0f} s: {parts.precision}", flush=True)
    for side, batch in itertools.product(sizes, asked.batches):
        if time.monotonic() - started > asked.budget:
            print(f"{name:28}{side:6}{batch:6} not run: the budget is spent", flush=True)
            continue
        with told(f"{name:28}{side:6}{batch:6}"):
            requests = [edit(spec, side, number) for number in range(batch)]
            line(f"{name:28}{side:6}{batch:6}", partial(run, ours, requests, device), device)
    if options.precision.mode == "bf16" and not options.tuning.compile:
        stock = stock_pipeline(parts, stock_vae)
        for side in sizes:
            with told(f"{'stock diffusers':28}{side:6}{1:6}"):
                request = edit(spec, side, 0)
                line(
                    f"{'stock diffusers':28}{side:6}{1:6}",
                    partial(run_stock, stock, request, device),
                    device,
                )


def draw(
    spec: PipelineSpec, options: ModelOptions, device: torch.device, *, full: bool
) -> tuple[Components, Any]:
    """Through the worker's own loader; and an autoencoder that nothing of ours has touched."""
    loader = Loader(spec, options, Silent(), pipeline_class="QwenImageEditPlusPipeline", stages=4)
    processor = read_processor(loader.folder)
    vae = autoencoder(device, full=full)
    parts = Components(
        text_encoder=loader.model(
            text_encoder(device, processor.tokenizer, full=full), "text_encoder", role="text"
        ),
        transformer=loader.model(transformer(device, full=full), "transformer", role="denoiser"),
        vae=loader.model(vae, "vae", role="vae"),
        processor=processor,
        solver=FlowMatchEulerDiscreteScheduler.from_pretrained(loader.folder, subfolder="scheduler"),
        device=loader.device,
        dtype=loader.dtype,
        precision=loader.precision,
    )
    return parts, vae.from_pretrained(dtype=loader.dtype).eval().to(device)


def edit(spec: PipelineSpec, side: int, number: int) -> InferenceRequest:
    return spec.request(
        id=str(number),
        task=Task.EDIT,
        prompt=PROMPTS[number % len(PROMPTS)],
        images=(picture(number, side),),
        width=side,
        height=side,
        steps=MEASURED_STEPS,
        cfg=1.0,
        seed=number,
    )


def line(label: str, work: Callable[[], Times], device: torch.device) -> None:
    work()  # the first time compiles, tunes and allocates
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = work()
    peak = f"{torch.cuda.max_memory_allocated(device) / GIB:10.1f}" if device.type == "cuda" else f"{'-':>10}"
    print(f"{label}{times}{peak}", flush=True)


def run(pipeline: QwenImageEdit, requests: list[InferenceRequest], device: torch.device) -> Times:
    laps = [now(device)]
    states = pipeline.prepare(requests)
    laps.append(now(device))
    while not states[0].finished:
        pipeline.step(states)
        laps.append(now(device))
    pipeline.decode(states)
    decode = now(device) - laps[-1]
    steps = [after - before for before, after in itertools.pairwise(laps[2:])]
    return Times(laps[1] - laps[0], statistics.median(steps), decode)


def stock_pipeline(parts: Components, vae: Any) -> Any:
    pipeline = upstream.QwenImageEditPlusPipeline(
        scheduler=parts.solver,
        vae=vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.processor.tokenizer,
        processor=parts.processor,
        transformer=parts.transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_stock(pipeline: Any, request: InferenceRequest, device: torch.device) -> Times:
    """The stock call takes one edit at a time. Its first step is part of what it does before the others."""
    # At the areas of our request; module constants are its own lever.
    upstream.CONDITION_IMAGE_SIZE = math.prod(request.condition_sizes[0])
    upstream.VAE_IMAGE_SIZE = math.prod(request.reference_sizes[0])
    laps = [now(device)]

    def note(*_: Any) -> dict[str, Any]:
        laps.append(now(device))
        return {}

    pipeline(
        image=[pillow.frombytes("RGB", image.size, image.pixels) for image in request.images],
        prompt=request.prompt,
        true_cfg_scale=1.0,
        num_inference_steps=request.steps,
        width=request.canvas[0],
        height=request.canvas[1],
        generator=torch.Generator("cpu").manual_seed(request.seed),
        callback_on_step_end=note,
        callback_on_step_end_tensor_inputs=[],
    )
    end = now(device)
    step = statistics.median(after - before for before, after in itertools.pairwise(laps[1:]))
    return Times(laps[1] - laps[0] - step, step, end - laps[-1])


def now(device: torch.device) -> float:
    finish(device)
    return time.perf_counter()


@contextmanager
def told(label: str) -> Iterator[None]:
    """A failure is a line of the table."""
    try:
        yield
    except (ServingError, RuntimeError, ValueError, ImportError, AssertionError) as error:
        reason = str(error).strip().splitlines()[:1]
        print(f"{label} failed: {type(error).__name__}: {reason[0][:160] if reason else ''}", flush=True)


@contextmanager
def fresh_memory() -> Iterator[None]:
    """What one precision held is gone before the next is drawn."""
    try:
        yield
    finally:
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
