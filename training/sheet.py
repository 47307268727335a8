"""A contact sheet: rows of pictures under their titles, in two columns. Knows nothing of models."""

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

_SIDE, _LINE = 96, 12


class Sheet:
    """Rows of as many pictures each, all shown square."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, Tensor]] = []

    def add(self, title: str, pictures: Tensor) -> None:
        """pictures: [n, 3, height, width] in 0 ... 1."""
        self._rows.append((title, pictures))

    def image(self) -> Image.Image:
        across = max(len(pictures) for _, pictures in self._rows) * _SIDE
        half = 2 * -(-len(self._rows) // 4)  # an edit stays above its exact operation
        sheet = Image.new("RGB", (2 * across + _LINE, half * (_SIDE + _LINE)), "white")
        pen = ImageDraw.Draw(sheet)
        for number, (title, pictures) in enumerate(self._rows):
            left = number // half * (across + _LINE)
            top = number % half * (_SIDE + _LINE)
            pen.text((left + 2, top), title, fill="black")
            for x, picture in enumerate(pictures):
                pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
                small = Image.fromarray(np.ascontiguousarray(pixels)).resize((_SIDE, _SIDE))
                sheet.paste(small, (left + x * _SIDE, top + _LINE))
        return sheet
