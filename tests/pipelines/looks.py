"""Requests to vision models, and what comes back as numbers to compare."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.request import Image, InferenceRequest
from core.result import InferenceResult
from core.vision import (
    TASK_OF,
    Ask,
    Depth,
    DepthMap,
    Detect,
    Detections,
    Embed,
    Features,
    Mask,
    Segment,
    Segmentation,
    SegmentPrompt,
)
from pipelines.registry import catalog
from tests.pipelines import edits

LABELS = ("a cat", "Red Car", "tree", "lamp by the road")
ASKS: tuple[Callable[[int], Ask], ...] = (
    lambda i: Embed(),
    lambda i: Depth(),
    lambda i: Detect(labels=LABELS[: i % 3 + 2], box_threshold=0.05, text_threshold=0.05),
    lambda i: Segment(prompts=tuple(SegmentPrompt(text=t) for t in LABELS[: i % 2 + 1]), threshold=0.05),
)


def look(name: str, number: int = 0, *, width: int = 96, height: int = 72, **ask: Any) -> InferenceRequest:
    """What the row is for, asked of another picture for each number."""
    spec = catalog(name).default
    asked = next(a for a in (make(number) for make in ASKS) if TASK_OF[type(a)] in spec.tasks)
    if ask:
        asked = replace(asked, **ask)
    return spec.look(id=f"look-{number}", image=edits.picture(number, width, height), ask=asked)


def looks_of(name: str) -> list[InferenceRequest]:
    """Four of one batch key, of different pictures of one size."""
    return [look(name, i) for i in range(4)]


def boxed_looks_of(name: str) -> list[InferenceRequest]:
    """As ``looks_of``, each with one to three boxes beside or instead of the words of its last prompt."""
    shown = (((8, 8, 50, 40), True), ((60, 20, 90, 70), False), ((30.5, 1, 44, 71.5), True))
    prompts = [
        (SegmentPrompt(text="tree"), SegmentPrompt(text="" if i % 2 else "a cat", boxes=shown[: i % 3 + 1]))
        for i in range(4)
    ]
    return [look(name, i, prompts=prompts[i][-(i % 2) - 1 :]) for i in range(4)]


def spoil_pictures(state: Any) -> None:
    """Of any family whose inputs are a tensor, or hold one as ``pixels``."""
    if hasattr(state.inputs, "pixels"):
        state.inputs.pixels = state.inputs.pixels * float("nan")
    else:
        state.inputs = state.inputs * float("nan")


def mask_of(mask: Mask) -> NDArray[np.bool_]:
    """[height, width]"""
    runs = np.frombuffer(mask.runs, "<u4")
    width, height = mask.size
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def values(result: InferenceResult) -> NDArray[np.float64]:
    """All that was found, as numbers; a picture as its pixels."""
    found = result.output
    if isinstance(found, Image):
        return edits.pixels(result).astype(np.float64)
    if isinstance(found, Features):
        return np.frombuffer(found.tokens, "<f4").astype(np.float64)
    if isinstance(found, DepthMap):
        return np.frombuffer(found.values, "<f4").astype(np.float64)
    if isinstance(found, Detections):
        return np.array([[*item.box, item.score, item.label] for item in found.items], np.float64)
    assert isinstance(found, Segmentation)
    return np.concatenate(
        [np.zeros(1)]
        + [
            np.concatenate([[*one.box, one.score], mask_of(one.mask).ravel().astype(np.float64)])
            for instances in found.prompts
            for one in instances
        ]
    )


def difference(one: InferenceResult, other: InferenceResult) -> float:
    """The largest between any two numbers; infinite where there are more of them in one."""
    a, b = values(one), values(other)
    return float(np.abs(a - b).max(initial=0.0)) if a.shape == b.shape else float("inf")
