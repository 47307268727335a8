"""What vision models are asked and what they answer, as plain values that every format is made from.

Coordinates are pixels of the caller's upright picture: x to the right, y down, boxes as
(left, top, right, bottom).
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from core.request import Size, Task

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentPrompt:
    """One thing to find: a noun phrase, boxes around examples of it, or both.

    boxes: each with whether it shows the thing (True) or something else that is meant to be left out.
    """

    text: str = ""
    boxes: tuple[tuple[Box, bool], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Every instance of each prompt, as masks.

    threshold: least score of an instance. mask_threshold: of a pixel. Both 0 to 1.
    priors: None leaves masks as they are; else a weight for each prompt, and a pixel that several claim
        goes to the one with the largest weight times score.
    """

    prompts: tuple[SegmentPrompt, ...]
    threshold: float = 0.5
    mask_threshold: float = 0.5
    priors: tuple[float, ...] | None = None

    @property
    def variant(self) -> str:
        """Texts alone and boxes go through different parts of the model, and cannot share a forward."""
        return "boxes" if any(prompt.boxes for prompt in self.prompts) else "text"


@dataclass(frozen=True, kw_only=True, slots=True)
class Detect:
    """labels: what to look for, in the caller's spelling; an answer names them by their index.

    box_threshold: least score of a box. text_threshold: of a word, to be part of the phrase that is told.
    Both 0 to 1.
    """

    labels: tuple[str, ...]
    box_threshold: float = 0.4
    text_threshold: float = 0.3
    variant: ClassVar[str] = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Depth:
    """focal: of the camera, in pixels of the picture, for models that measure in metres; None is unknown."""

    focal: float | None = None
    variant: ClassVar[str] = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Embed:
    """Features of the whole picture and of each of its patches."""

    variant: ClassVar[str] = ""


Ask = Segment | Detect | Depth | Embed
TASK_OF: dict[type[Ask], Task] = {
    Segment: Task.SEGMENT,
    Detect: Task.DETECT,
    Depth: Task.DEPTH,
    Embed: Task.EMBED,
}

# For a model that is tried before anyone asks it something.
PLAINEST: dict[Task, Ask] = {
    Task.SEGMENT: Segment(prompts=(SegmentPrompt(text="thing"),)),
    Task.DETECT: Detect(labels=("thing",)),
    Task.DEPTH: Depth(),
    Task.EMBED: Embed(),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mask:
    """A mask of a picture's size, as the lengths of its runs: the form that all others are made from.

    runs: uint32, little-endian, column by column from the top left; the first counts zeros and may be 0.
        They sum up to ``width * height``.
    """

    size: Size
    runs: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """score: 0 to 1. box: around the mask or as the model says, inside the picture."""

    box: Box
    score: float
    mask: Mask


@dataclass(frozen=True, kw_only=True, slots=True)
class Segmentation:
    """prompts: the instances of each prompt, in the prompts' order, the best score first."""

    size: Size
    prompts: tuple[tuple[Instance, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """label: index of what it is among those asked for. phrase: the words of it that were recognised."""

    box: Box
    score: float
    label: int
    phrase: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Detections:
    """The best score first; boxes are inside the picture."""

    size: Size
    items: tuple[Detection, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthMap:
    """values: float32, little-endian, row by row, of ``size``: that of the caller's picture.

    kind: ``depth`` grows with the distance, ``disparity`` falls with it.
    unit: ``metre``, or ``relative`` where only the order and the proportions mean something.
    """

    size: Size
    values: bytes = field(repr=False)
    kind: Literal["depth", "disparity"]
    unit: Literal["metre", "relative"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """tokens: float32, little-endian, [length, width]: class token, registers, patches row by row.

    pooled: float32 [width], of the whole picture. grid: (columns, rows) of patches; they are the last
    ``columns * rows`` of the ``length`` tokens.
    """

    tokens: bytes = field(repr=False)
    pooled: bytes = field(repr=False)
    length: int
    width: int
    grid: Size


Findings = Segmentation | Detections | DepthMap | Features
FINDINGS_OF: dict[Task, type[Findings]] = {
    Task.SEGMENT: Segmentation,
    Task.DETECT: Detections,
    Task.DEPTH: DepthMap,
    Task.EMBED: Features,
}
