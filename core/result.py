"""``InferenceResult``: what a pipeline gives back and every dialect renders."""

from collections.abc import Callable
from dataclasses import dataclass

from core.request import Image


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceResult:
    """The answer to the request of the same id.

    image: at the request's ``canvas``; the edge resizes to ``size`` where the two differ.
    The pipeline fills the fields up to ``lightning_enabled``; the mux fills the rest.

    queue_seconds: submission until prepared. inference_seconds: from there until decoded.
    batch_size: the most rows this one shared a forward with, itself included.
    mates: ids of all the requests it ever shared one with.
    """

    id: str
    image: Image
    model: str
    seed: int
    steps: int
    lightning_enabled: bool = False
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0
    batch_size: int = 0
    mates: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where one job stands. ``step`` counts finished denoising steps of ``steps``.

    preview: a rough picture of what the result will be, smaller than the canvas; where one was asked for.
    """

    state: str
    step: int
    steps: int
    position: int | None = None  # jobs ahead in the queue, while queued
    preview: Image | None = None


# Called on the device thread: it must not block. What it raises is logged and dropped.
OnProgress = Callable[[Progress], None]
