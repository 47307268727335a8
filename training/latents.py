"""Endless (references, edited picture) pairs in latents, for the transformer's training.

Encoding costs about as much as a training step, so each pair is kept in a ring and met several times, under
other noise and other words.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from training.operations import COLOURS, OPERATIONS, blend
from training.pictures import PictureSource
from training.still import StillAutoencoder
from training.wording import BLEND, has_strength

_CHANNELS = 16
Grid = tuple[int, int]  # rows and columns of tokens, each 16x16 pixels


@dataclass(frozen=True, slots=True)
class Pairs:
    """Packed latents [n, tokens, 64] of each reference and of the edited picture, and what was asked.

    exact: uint8 [n, 3, height, width], the edited picture itself where the ring keeps it; else empty.
    """

    references: tuple[Tensor, ...]
    target: Tensor
    asked: list[tuple[str, float]]
    grid: Grid
    exact: Tensor


class LatentCodec:
    """The trained autoencoder with its latents brought to mean 0 and deviation 1, packed 2x2."""

    def __init__(self, model: StillAutoencoder, mean: Tensor, deviation: Tensor) -> None:
        self._model = model.eval().requires_grad_(False)
        self.mean = mean
        self.deviation = deviation
        self.weight = self._weigh()

    @classmethod
    def measured(cls, model: StillAutoencoder) -> "LatentCodec":
        """Mean and deviation of each channel over training pictures and their edits."""
        source = PictureSource(seed=4)
        latents = []
        with torch.no_grad():
            for step, operation in enumerate([*OPERATIONS.values()] * 2):
                pictures = (
                    operation(source.photos(step, 4, 128), 1.0) if step % 2 else source.photos(step, 4, 128)
                )
                latents.append(model.encode(pictures * 2 - 1))
        every = torch.cat(latents).transpose(0, 1).flatten(1)
        return cls(model, every.mean(1), every.std(1))

    def encode(self, pictures: Tensor) -> Tensor:
        """Packed latents [n, tokens, 64] of pictures [n, 3, height, width] in 0 ... 1."""
        with torch.no_grad():
            latents = self._model.encode(pictures * 2 - 1)
        latents = (latents - self.mean.view(1, -1, 1, 1)) / self.deviation.view(1, -1, 1, 1)
        return pack(latents)

    def _weigh(self) -> Tensor:
        """How much an error in each of the 64 packed values shows in the picture; 1 on average."""
        pictures = PictureSource(seed=8).photos(0, 8, 128)
        with torch.no_grad():
            latents = self.encode(pictures)
            plain = self.decode(latents, (8, 8))
            shown = []
            for channel in range(_CHANNELS):
                noise = torch.zeros_like(latents)
                noise[..., channel * 4 : channel * 4 + 4] = 0.3 * torch.randn(
                    (*latents.shape[:-1], 4), generator=torch.Generator().manual_seed(channel)
                )
                shown.append((self.decode(latents + noise, (8, 8)) - plain).square().mean())
        weight = torch.stack(shown).repeat_interleave(4)
        return weight / weight.mean()

    def decode(self, packed: Tensor, grid: Grid) -> Tensor:
        """Pictures, white at 1 and black at 0 but not clamped; gradients flow through."""
        latents = unpack(packed, 2 * grid[0], 2 * grid[1])
        latents = latents * self.deviation.view(1, -1, 1, 1) + self.mean.view(1, -1, 1, 1)
        return self._model.decode(latents) / 2 + 0.5


def pack(latents: Tensor) -> Tensor:
    """[n, 16, rows, columns] to [n, rows / 2 * columns / 2, 64], in the pipeline's order."""
    n, channels, rows, columns = latents.shape
    patches = latents.reshape(n, channels, rows // 2, 2, columns // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(n, rows // 2 * (columns // 2), channels * 4)


def unpack(packed: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of ``pack``."""
    n = len(packed)
    patches = packed.view(n, rows // 2, columns // 2, _CHANNELS, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(n, _CHANNELS, rows, columns)


class PairRing:
    """Pairs of one size and one number of references; the oldest make room for fresh ones."""

    def __init__(
        self,
        codec: LatentCodec,
        source: PictureSource,
        grid: Grid,
        *,
        blends: bool,
        capacity: int,
        weights: dict[str, float],
        pictures: bool = False,
    ) -> None:
        self._codec = codec
        self._source = source
        self.grid = grid
        self._weights = weights
        self._pictures = pictures
        self._blends = blends
        self._capacity = capacity
        self._pairs: list[tuple[tuple[Tensor, ...], Tensor, tuple[str, float], Tensor]] = []
        self._next = 0

    def refresh(self, step: int, bases: int, edits: int) -> None:
        """Add ``bases`` pictures with ``edits`` edits each (blends: one each)."""
        draw = random.Random(step)
        size = (self.grid[0] * 16, self.grid[1] * 16)
        pictures = self._source.photos(step, bases * (2 if self._blends else 1), *size)
        if self._blends:
            first, second = pictures.chunk(2)
            exact = blend(first, second)
            mixes = torch.split(self._codec.encode(torch.cat([first, second, exact])), bases)
            for a, b, mixed, picture in zip(*mixes, exact, strict=True):
                self._add((a, b), mixed, (BLEND, 1.0), picture)
            return
        wishes = [_draw_edit(draw, self._weights) for _ in range(bases * edits)]
        owners = [picture for picture in torch.split(pictures, 1) for _ in range(edits)]
        edited = [
            OPERATIONS[name](owner, strength) for owner, (name, strength) in zip(owners, wishes, strict=True)
        ]
        latents = self._codec.encode(torch.cat([pictures, *edited]))
        for i, wish in enumerate(wishes):
            self._add((latents[i // edits],), latents[bases + i], wish, edited[i][0])

    def draw(self, count: int, draw: random.Random) -> Pairs:
        chosen = draw.choices(self._pairs, k=count)
        return Pairs(
            references=tuple(
                torch.stack([pair[0][i] for pair in chosen]).float() for i in range(len(chosen[0][0]))
            ),
            target=torch.stack([pair[1] for pair in chosen]).float(),
            asked=[pair[2] for pair in chosen],
            grid=self.grid,
            exact=torch.stack([pair[3] for pair in chosen]),
        )

    def _add(
        self, references: tuple[Tensor, ...], target: Tensor, asked: tuple[str, float], exact: Tensor
    ) -> None:
        kept = (exact * 255).round().byte() if self._pictures else torch.empty(0)
        pair = (tuple(reference.half() for reference in references), target.half(), asked, kept)
        if len(self._pairs) < self._capacity:
            self._pairs.append(pair)
        else:
            self._pairs[self._next] = pair
            self._next = (self._next + 1) % self._capacity


# Hard edits come more often: moving every token, or drawing what the reference does not show.
_BORDERS = {f"{colour} border": 0.4 for colour in COLOURS}
FIRST = _BORDERS | {"flip": 7.0, "sketch": 3.0, "invert": 2.0, "contrast": 2.0, "unchanged": 2.0}
REFINED = _BORDERS | {"flip": 4.0, "sketch": 2.0, "contrast": 6.0, "brighter": 2.0, "unchanged": 2.0}


def _draw_edit(draw: random.Random, weights: dict[str, float]) -> tuple[str, float]:
    names = list(OPERATIONS)
    name = draw.choices(names, [weights.get(name, 1.0) for name in names])[0]
    strength = draw.choice((0.5, 1.0, 1.0, 1.5)) if has_strength(name) else 1.0
    return name, strength
