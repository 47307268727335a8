"""Pictures with what was found drawn on them: boxes with labels, masks, the colours of depth or features."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from api.codec import Term
from api.colours import by_number
from api.png import png
from api.vision_depth import depth_colours
from api.vision_features import tokens_of
from api.vision_masks import dense_of
from core.request import Image, InferenceRequest
from core.result import InferenceResult
from core.vision import Box, DepthMap, Detect, Detections, Features, Segment, Segmentation

Colour = tuple[int, int, int]
_VEIL: Final = 0.55  # of a mask's colour over the picture
_ROWS: Final = 64
_LONGEST_LABEL: Final = 40


def drawing(request: InferenceRequest, result: InferenceResult, term: Term) -> bytes:
    """A PNG as large as the picture that was looked at."""
    found = result.output
    (picture,) = request.images
    if isinstance(found, DepthMap):
        return png(depth_colours(found).tobytes(), found.size)
    if isinstance(found, Features):
        return png(_features(found, picture).tobytes(), picture.size)
    if isinstance(found, Segmentation):
        canvas = _masks(picture, request, found, term)
    elif isinstance(found, Detections):
        assert isinstance(request.ask, Detect)
        canvas = Pillow.frombytes("RGB", picture.size, picture.pixels)
        colours = _colours(len(request.ask.labels))
        for one in reversed(found.items):  # the best on top
            label = f"{request.ask.labels[one.label]} {one.score:.2f}"
            _box(canvas, one.box, label, colours[one.label])
    else:
        raise TypeError(f"{result.model} answered with {type(found).__name__}, which nobody can draw")
    return png(canvas.tobytes(), canvas.size)


def _masks(picture: Image, request: InferenceRequest, found: Segmentation, term: Term) -> Pillow.Image:
    """Each instance in a colour of its own, the prompt's name at its box."""
    assert isinstance(request.ask, Segment)
    pixels = np.frombuffer(picture.pixels, np.uint8).reshape(picture.height, picture.width, 3).copy()
    colours = _colours(sum(map(len, found.prompts)))
    labels: list[tuple[Box, str, Colour]] = []
    for prompt, instances in zip(request.ask.prompts, found.prompts, strict=True):
        for one in instances:
            term.check()
            colour = colours[len(labels)]
            _veil(pixels, dense_of(one.mask), colour)
            labels.append((one.box, f"{prompt.text} {one.score:.2f}".strip(), colour))
    drawn = Pillow.fromarray(pixels)
    del pixels
    for box, label, colour in labels:
        _box(drawn, box, label, colour)
    return drawn


def _veil(pixels: NDArray[np.uint8], mask: NDArray[np.uint8], colour: Colour) -> None:
    """In place, a few rows at a time; what a shade becomes is looked up, not computed for each pixel."""
    shades = np.arange(256) * (1 - _VEIL)
    veiled = [(shades + part * _VEIL).astype(np.uint8) for part in colour]
    for top in range(0, len(pixels), _ROWS):
        inside = mask[top : top + _ROWS] != 0
        if inside.any():
            strip = pixels[top : top + _ROWS]
            for channel, table in enumerate(veiled):
                np.copyto(strip[..., channel], table[strip[..., channel]], where=inside)


def _box(canvas: Pillow.Image, box: Box, label: str, colour: Colour) -> None:
    pen = ImageDraw.Draw(canvas)
    line = max(1, round(max(canvas.size) / 400))
    left, top, right, bottom = (round(edge) for edge in box)
    pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=line)
    font = ImageFont.load_default(max(10, round(max(canvas.size) / 50)))
    text = "".join(letter if letter.isprintable() else "?" for letter in label[:_LONGEST_LABEL])
    x0, y0, x1, y1 = pen.textbbox((0, 0), text, font)
    height = y1 + y0
    above = top - height if top >= height else top
    pen.rectangle((left, above, left + x1 + x0 + 2, above + height), fill=colour)
    pen.text((left + 1, above), text, fill=(0, 0, 0), font=font)


def _features(found: Features, picture: Image) -> NDArray[np.uint8]:
    """The three directions in which patches differ most, as red, green and blue."""
    columns, rows = found.grid
    patches = tokens_of(found)[found.length - columns * rows :].astype(np.float64)
    patches -= patches.mean(axis=0)
    _, _, directions = np.linalg.svd(patches, full_matrices=False)
    shares = np.zeros((len(patches), 3))
    main = directions[:3]
    # A direction and its opposite are as good; the larger half decides, so that a picture keeps its colours.
    signs = np.sign(main[np.arange(len(main)), np.abs(main).argmax(axis=1)])
    shares[:, : len(main)] = patches @ (main * signs[:, None]).T
    low, high = shares.min(axis=0), shares.max(axis=0)
    levels = np.rint((shares - low) / np.where(high > low, high - low, 1) * 255).astype(np.uint8)
    small = Pillow.fromarray(levels.reshape(rows, columns, 3))
    return np.asarray(small.resize(picture.size, Pillow.Resampling.NEAREST))


def _colours(count: int) -> list[Colour]:
    return [(int(red), int(green), int(blue)) for red, green, blue in by_number(count)]
