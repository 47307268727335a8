"""Sizes that are run once inside a load, so that no caller waits for what a first time costs.

Knows no model library: what it runs are requests of the row, through the pipeline's three methods. A size is
that of a picture that is made, or of one that a vision model looks at.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from core.errors import CapacityError, ExecutionError, OutOfDeviceMemory, RequestError
from core.pipeline import Pipeline
from core.request import Image, InferenceRequest, Size, Task
from core.result import InferenceResult
from core.spec import PipelineSpec
from core.vision import FINDINGS_OF, PLAINEST, Ask
from pipelines.options import ModelOptions, Report

STEPS = 2  # with one step the stock solver's schedule is degenerate
SIDE = 512  # pixels of the synthetic picture
PROMPTS = ("warm-up", "warm-up of a batch whose second text is longer")

Batch = list[InferenceRequest]


def requests(spec: PipelineSpec, options: ModelOptions) -> list[Batch]:
    """The batches that ``options.warm_up`` asks for, at the row's defaults.

    A compiled model is run in every form that compiles anew: one row, two of one text length, two of
    different ones, with guidance and without, of each size, or of the row's own where none is named. Vision
    models are never compiled: each looks once at a grey picture of each size that is named.
    Raises ``CapacityError`` ``not_ready`` for a size that the row refuses.
    """
    if spec.vision is not None:
        asks = [PLAINEST[task] for task in sorted(spec.tasks)]
        return [[_look(spec, ask, size)] for size in options.warm_up for ask in asks]
    sizes: Sequence[Size | None] = options.warm_up or ((None,) if options.tuning.compile else ())
    try:
        return [batch for size in sizes for batch in _batches(spec, size, options.tuning.compile)]
    except RequestError as error:
        raise CapacityError(
            "not_ready", f"a size of WARM_UP cannot be run: {error.message}", retryable=False
        ) from None


def run(pipeline: Pipeline[Any], batches: Sequence[Batch], report: Report) -> None:
    """Every batch from ``prepare`` to ``decode``. Raises what the pipeline raises."""
    for number, batch in enumerate(batches, start=1):
        width, height = batch[0].size
        report.stage(f"warm-up {width}x{height}", number, len(batches))
        try:
            _run(pipeline, batch)
        except OutOfDeviceMemory:
            raise CapacityError(
                "not_ready",
                f"{batch[0].model} ran out of memory in the warm-up of {width}x{height}; take that size out "
                "of WARM_UP, or set PRECISION_MODE=8bit",
                retryable=False,
            ) from None


def _run(pipeline: Pipeline[Any], batch: Batch) -> None:
    states = pipeline.prepare(batch)
    while running := [state for state in states if not state.finished]:
        pipeline.step(running)
    results = pipeline.decode(states)
    if not all(_answers(result, request) for result, request in zip(results, batch, strict=True)):
        raise ExecutionError("pipeline_error", "the warm-up did not give what it asked for")


def _answers(result: InferenceResult, request: InferenceRequest) -> bool:
    if request.ask is not None:
        return isinstance(result.output, FINDINGS_OF[request.task])
    return result.image.size == request.canvas


def _look(spec: PipelineSpec, ask: Ask, size: Size) -> InferenceRequest:
    return spec.look(id="warm-up", image=_grey(size), ask=ask)


def _grey(size: Size) -> Image:
    width, height = size
    digest = f"warm-up {width}x{height}"
    return Image(pixels=b"\x80" * (3 * width * height), width=width, height=height, digest=digest)


def _batches(spec: PipelineSpec, size: Size | None, compiled: bool) -> Iterator[Batch]:
    tasks = [task for task in (Task.GENERATE, Task.EDIT) if task in spec.tasks]
    for task in tasks:
        if not compiled:
            yield [_request(spec, task, size)]
            continue
        for cfg in sorted({1.0, min(max(spec.cfg, 2.0), spec.max_cfg)}):
            one, other = (_request(spec, task, size, text=text, cfg=cfg) for text in PROMPTS)
            yield from ([one], [one, one], [one, other])


def _request(
    spec: PipelineSpec, task: Task, size: Size | None, *, text: str = PROMPTS[0], cfg: float | None = None
) -> InferenceRequest:
    width, height = size or (None, None)
    return spec.request(
        id="warm-up",
        task=task,
        prompt=text,
        images=(_grey((SIDE, SIDE)),) if task is Task.EDIT else (),
        width=width,
        height=height,
        steps=min(STEPS, spec.max_steps) if spec.steps > 1 else 1,
        cfg=cfg,
        seed=0,
    )
