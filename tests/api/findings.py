"""Rows of vision models for tests, and what they find: taken from the picture, so misrouting shows."""

import numpy as np
from numpy.typing import NDArray

from core.catalog import Catalog
from core.request import Image, InferenceRequest, Task
from core.spec import PipelineSpec
from core.vision import (
    Depth,
    DepthMap,
    Detect,
    Detection,
    Detections,
    Embed,
    Features,
    Findings,
    Instance,
    Mask,
    Segment,
    Segmentation,
)
from core.vision_spec import VisionSpec


def _row(name: str, task: Task, *aliases: str, **limits: int) -> PipelineSpec:
    return PipelineSpec(
        name=name,
        factory="none:none",
        source=f"org/{name}",
        aliases=aliases,
        tasks=frozenset({task}),
        vision=VisionSpec(fit="square", side=64, **limits),
    )


CUTTER = _row("cutter", Task.SEGMENT, "sam3")
FINDER = _row("finder", Task.DETECT, "grounding-dino-base")
DIVER = _row("diver", Task.DEPTH)
FEELER = _row("feeler", Task.EMBED)
SEERS = (CUTTER, FINDER, DIVER, FEELER)
VISION = Catalog(SEERS, default="cutter")


def found_in(request: InferenceRequest) -> Findings:
    (image,), ask = request.images, request.ask
    match ask:
        case Segment():
            return Segmentation(
                size=image.size,
                prompts=tuple(
                    tuple(one for one in (_instance(image, at),) if one.score >= ask.threshold)
                    for at in range(len(ask.prompts))
                ),
            )
        case Detect():
            return Detections(
                size=image.size,
                items=tuple(
                    Detection(
                        box=(float(at), 1.0, at + 10.5, 12.0), score=score(at), label=at, phrase=label.lower()
                    )
                    for at, label in enumerate(ask.labels)
                    if score(at) >= ask.box_threshold
                ),
            )
        case Depth():
            values = red(image).astype("<f4")
            return DepthMap(size=image.size, values=values.tobytes(), kind="depth", unit="relative")
        case Embed():
            tokens = (float(red(image).mean()) + np.arange(5 * 8, dtype="<f4")).reshape(5, 8)
            return Features(
                tokens=tokens.tobytes(), pooled=tokens[0].tobytes(), length=5, width=8, grid=(2, 2)
            )
    raise AssertionError(ask)


def red(image: Image) -> NDArray[np.uint8]:
    """[height, width]"""
    return np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width, 3)[..., 0]


def score(at: int) -> float:
    return round(0.9 - 0.1 * at, 1)


def _instance(image: Image, at: int) -> Instance:
    """Of the first prompt what is red, of the second what is not, and so on in turns."""
    inside = (red(image) >= 128) != bool(at % 2)
    return Instance(
        box=(0.0, 0.0, float(image.width), float(image.height)), score=score(at), mask=mask_of(inside)
    )


def mask_of(inside: NDArray[np.bool_]) -> Mask:
    """[height, width], by the plainest way there is."""
    column_wise = inside.T.ravel().astype(np.int8)
    edges = np.flatnonzero(np.diff(column_wise)) + 1
    starts = np.concatenate(([0], edges, [column_wise.size]))
    runs = np.diff(starts)
    if column_wise[0]:
        runs = np.concatenate(([0], runs))
    return Mask(size=(inside.shape[1], inside.shape[0]), runs=runs.astype("<u4").tobytes())
