"""Endless training pictures: crops of the photographs at several scales, jittered, and drawn patterns."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from training.photos import open_photos

_SHORT_SIDES = (200, 256, 320, 448, 640, 1024)


class PictureSource:
    """Deterministic: the pictures of a step depend on ``seed`` and the step alone, so a run can resume."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._draw = np.random.default_rng(seed)
        self._levels = [_levels(photo) for photo in open_photos("train")]

    def photos(self, step: int, count: int, side: int) -> Tensor:
        """float32 [count, 3, side, side] in 0 ... 1: about one in ten is drawn, the others are crops."""
        self._draw = np.random.default_rng((self._seed, step))
        return torch.stack(
            [
                self._pattern(side) if self._draw.random() < 0.1 else self._jitter(self._crop(side))
                for _ in range(count)
            ]
        )

    def _crop(self, side: int) -> Tensor:
        levels = self._levels[self._draw.integers(len(self._levels))]
        usable = [level for level in levels if min(level.shape[1:]) >= side]
        level = usable[self._draw.integers(len(usable))]
        top = self._draw.integers(level.shape[1] - side + 1)
        left = self._draw.integers(level.shape[2] - side + 1)
        return level[:, top : top + side, left : left + side].float() / 255

    def _jitter(self, crop: Tensor) -> Tensor:
        """Mirrored, sometimes turned, and off in colour: a few photographs must stand for many."""
        draw = self._draw
        if draw.random() < 0.5:
            crop = crop.flip(-1)
        if draw.random() < 0.25:
            crop = crop.transpose(1, 2)
        if draw.random() < 0.3:
            crop = crop[torch.from_numpy(draw.permutation(3))]
        if draw.random() < 0.5:
            gain = torch.tensor(draw.uniform(0.8, 1.2, (3, 1, 1)), dtype=torch.float32)
            crop = (crop ** float(draw.uniform(0.7, 1.4)) * gain).clamp(0, 1)
        return crop

    def _pattern(self, side: int) -> Tensor:
        """A smooth gradient with a few hard-edged shapes on it."""
        draw = self._draw
        coarse = torch.tensor(draw.random((1, 3, 3, 3)), dtype=torch.float32)
        picture = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)[0].clamp(0, 1)
        down, across = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        for _ in range(int(draw.integers(0, 5))):
            y, x, reach = (float(v) for v in draw.uniform((0, 0, side / 12), (side, side, side / 3)))
            if draw.random() < 0.5:
                inside = (down - y) ** 2 + (across - x) ** 2 < reach**2
            else:
                angle = float(draw.uniform(0, np.pi))
                u = (down - y) * np.cos(angle) + (across - x) * np.sin(angle)
                v = (across - x) * np.cos(angle) - (down - y) * np.sin(angle)
                inside = (u.abs() < reach) & (v.abs() < reach * float(draw.uniform(0.1, 1)))
            colour = torch.tensor(draw.random((3, 1)), dtype=torch.float32)
            picture[:, inside] = colour
        return picture


def _levels(photo: Image.Image) -> list[Tensor]:
    """uint8 [3, height, width] at each short side up to the photograph's own."""
    levels = []
    for short in _SHORT_SIDES:
        scale = short / min(photo.size)
        if scale > 1.3:
            break
        size = (round(photo.width * scale), round(photo.height * scale))
        pixels = np.array(photo.resize(size, Image.Resampling.LANCZOS))
        levels.append(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    return levels


def held_out(side: int) -> Tensor:
    """float32 [n, 3, side, side]: the middle square of each held-out photograph."""
    squares = []
    for photo in open_photos("held-out"):
        edge = min(photo.size)
        left, top = (photo.width - edge) // 2, (photo.height - edge) // 2
        square = photo.crop((left, top, left + edge, top + edge))
        pixels = np.array(square.resize((side, side), Image.Resampling.LANCZOS))
        squares.append(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
    return torch.stack(squares)
