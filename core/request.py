"""``InferenceRequest``: what every dialect becomes before the mux sees it."""

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.vision import Ask

Size = tuple[int, int]  # (width, height) in pixels
SEED_MAX = 2**63 - 1  # clients send nanosecond clocks; torch takes any 64-bit seed


class Task(StrEnum):
    GENERATE = "generate"
    EDIT = "edit"
    SEGMENT = "segment"
    DETECT = "detect"
    DEPTH = "depth"
    EMBED = "embed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """A decoded picture: 8-bit RGB, rows top to bottom, upright (EXIF applied), alpha flattened.

    Decoded at the edge, so a broken file is the caller's 422 and never costs device time.

    pixels: ``width * height * 3`` bytes.
    digest: names the content; equal digests mean equal pictures. Caches are keyed by it, so one
    is made from the pixels when none is given (the edge gives a cheaper one, of the encoded file).

    Raises ``ValueError`` when there is no pixel, or not ``width * height`` of them.
    """

    pixels: bytes = field(repr=False)
    width: int
    height: int
    digest: str = ""

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 1 or len(self.pixels) != self.width * self.height * 3:
            raise ValueError(f"{len(self.pixels)} bytes are not {self.width}x{self.height} RGB")
        if not self.digest:
            content = hashlib.sha256(b"%dx%d:" % self.size)
            content.update(self.pixels)
            object.__setattr__(self, "digest", content.hexdigest())

    @property
    def size(self) -> Size:
        return self.width, self.height


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceRequest:
    """One picture to make, or to look at, with every default filled in.

    Built by ``PipelineSpec.request``, and by ``PipelineSpec.look`` where a vision model looks at a picture.

    size:       what the caller gets, in pixels.
    canvas:     what the model runs at: ``size`` rounded up to the model's multiple.
    reference_sizes: the size at which each input image enters the model as a reference.
    condition_sizes: the size at which each input image is shown to the text encoder.
    steps:      denoising steps, >= 1.
    cfg:        true classifier-free guidance scale; 1.0 means unguided.
    negative_prompt: what guidance steers away from; None is no text at all.
    seed:       0 ... SEED_MAX.
    tokens:     transformer tokens of one forward of this row (both rows when guided).
    adapters:   (id, scale) of each LoRA over the model, ordered by id.
    strength:   part of the schedule that is run, from a noised picture on: 0 < strength <= 1. None where
                pictures are references, and for GENERATE.
    mask:       white is painted anew, black is kept; as large as the first picture.
    step_cache: relative change of the first block's output below which a step reuses the blocks after it,
                0 ... 1; 0 computes every step in full.
    timeout:    seconds from submission to the last useful moment of an answer; None is no limit.
    previews:   rough pictures on the way, at most, each told with the progress of a step.
    ask:        what a vision model is to find in the one picture, which enters it at ``canvas``; it has one
                step, and no prompt, seed or guidance. None where a picture is made.
    """

    id: str
    task: Task
    model: str
    prompt: str = field(repr=False)
    negative_prompt: str | None = field(default=" ", repr=False)
    images: tuple[Image, ...] = ()
    size: Size
    canvas: Size
    reference_sizes: tuple[Size, ...] = ()
    condition_sizes: tuple[Size, ...] = ()
    steps: int
    cfg: float
    seed: int
    tokens: int
    adapters: tuple[tuple[str, float], ...] = ()
    strength: float | None = None
    mask: Image | None = None
    step_cache: float = 0.0
    timeout: float | None = None
    previews: int = 0
    ask: "Ask | None" = None

    @property
    def guided(self) -> bool:
        return self.cfg > 1.0

    @property
    def steps_run(self) -> int:
        """Steps that are computed: the end of the schedule alone when a picture is only partly redrawn."""
        return self.steps if self.strength is None else int(self.steps * self.strength)

    @property
    def nbytes(self) -> int:
        """Memory that waiting costs: pixels and text."""
        pictures = self.images if self.mask is None else (*self.images, self.mask)
        pixels = sum(len(image.pixels) for image in pictures)
        return pixels + len(self.prompt) + len(self.negative_prompt or "")
