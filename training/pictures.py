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

    def photos(self, step: int, count: int, height: int, width: int | None = None) -> Tensor:
        """float32 [count, 3, height, width] in 0 ... 1, square without a width.

        About one in ten is drawn, the others are crops.
        """
        size = (height, width or height)
        self._draw = np.random.default_rng((self._seed, step))
        return torch.stack(
            [
                self._pattern(*size) if self._draw.random() < 0.1 else self._jitter(self._crop(*size))
                for _ in range(count)
            ]
        )

    def _crop(self, height: int, width: int) -> Tensor:
        levels = self._levels[self._draw.integers(len(self._levels))]
        usable = [level for level in levels if level.shape[1] >= height and level.shape[2] >= width]
        level = usable[self._draw.integers(len(usable))]
        top = self._draw.integers(level.shape[1] - height + 1)
        left = self._draw.integers(level.shape[2] - width + 1)
        return level[:, top : top + height, left : left + width].float() / 255

    def _jitter(self, crop: Tensor) -> Tensor:
        """Mirrored, sometimes turned (squares), and off in colour: a few photographs must stand for many."""
        draw = self._draw
        if draw.random() < 0.5:
            crop = crop.flip(-1)
        if draw.random() < 0.25 and crop.shape[1] == crop.shape[2]:
            crop = crop.transpose(1, 2)
        if draw.random() < 0.3:
            crop = crop[torch.from_numpy(draw.permutation(3))]
        if draw.random() < 0.5:
            gain = torch.tensor(draw.uniform(0.8, 1.2, (3, 1, 1)), dtype=torch.float32)
            crop = (crop ** float(draw.uniform(0.7, 1.4)) * gain).clamp(0, 1)
        return crop

    def _pattern(self, height: int, width: int) -> Tensor:
        """A smooth gradient with a few hard-edged shapes on it."""
        short = min(height, width)
        draw = self._draw
        coarse = torch.tensor(draw.random((1, 3, 3, 3)), dtype=torch.float32)
        picture = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)[0].clamp(
            0, 1
        )
        down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        for _ in range(int(draw.integers(0, 5))):
            y, x, reach = (float(v) for v in draw.uniform((0, 0, short / 12), (height, width, short / 3)))
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


def held_out(height: int, width: int | None = None) -> Tensor:
    """float32 [n, 3, height, width], square without a width: the middle of each held-out photograph."""
    width = width or height
    middles = []
    for photo in open_photos("held-out"):
        scale = min(photo.width / width, photo.height / height)
        across, down = round(width * scale), round(height * scale)
        left, top = (photo.width - across) // 2, (photo.height - down) // 2
        middle = photo.crop((left, top, left + across, top + down))
        pixels = np.array(middle.resize((width, height), Image.Resampling.LANCZOS))
        middles.append(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
    return torch.stack(middles)
