"""Rough pictures on the way: after which steps they are told, and that none can do any harm."""

import logging
from typing import Any

from core.pipeline import Pipeline, Previewing, RowState
from core.request import Image

log = logging.getLogger(__name__)


def due(step: int, steps: int, previews: int) -> bool:
    """Whether one is told after ``step`` of ``steps``: spread evenly, and none after the last."""
    return step < steps and step in {max(1, i * steps // (previews + 1)) for i in range(1, previews + 1)}


def preview_of(pipeline: Pipeline[Any], state: RowState) -> Image | None:
    """None where the pipeline makes none, or failed to: the row itself is none the worse."""
    if not isinstance(pipeline, Previewing):
        return None
    try:
        return pipeline.preview(state)
    except Exception:  # a device that is lost says so again at the next step
        log.exception("a preview failed")
        return None
