"""``InferenceResult``: what a pipeline gives back and every dialect renders."""

from collections.abc import Callable
from dataclasses import dataclass

from core.request import Image
from core.vision import Findings


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceResult:
    """The answer to the request of the same id.

    output: a picture at the request's ``canvas``, which the edge resizes to ``size`` where the two differ;
        or what a vision model found, of the kind that ``FINDINGS_OF`` the task names.
    The pipeline fills the fields up to ``lightning_enabled``; the mux fills the rest.

    queue_seconds: submission until prepared. inference_seconds: from there until decoded.
    batch_size: the most rows this one shared a forward with, itself included.
    mates: ids of all the requests it ever shared one with.
    """

    id: str
    output: Image | Findings
    model: str
    seed: int
    steps: int
    lightning_enabled: bool = False
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0
    batch_size: int = 0
    mates: tuple[str, ...] = ()

    @property
    def image(self) -> Image:
        """The picture that was made. Raises ``TypeError`` for the answer of a vision model."""
        if not isinstance(self.output, Image):
            raise TypeError(f"{self.model} answered with {type(self.output).__name__}, not a picture")
        return self.output


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
