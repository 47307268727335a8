"""Rough pictures of rows under way: colours read off their latents by a rule fitted to the autoencoder.

A latent's colour is nearly a linear function of its channels (as in the previews of ComfyUI and
AUTOMATIC1111's web UI, ``latent_rgb_factors`` and "Approx cheap"), so one small product shows a picture
at an eighth of its sides. The rule is fitted here, so that any checkpoint has its own.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from core.request import Image

_SIDE = 8  # latents of one sample
_BLOCK = 2  # latents of one colour
_SAMPLES = 3


class LatentColours:
    """decode: pictures uint8 [n, h, w, 3] on the CPU, of the model's latents [n, channels, h / 8, w / 8].

    The rule is fitted at the first preview, which costs as much as to decode 12,000 pixels: an eightieth
    of a megapixel, and about a step of the pocket models.
    """

    def __init__(
        self, decode: Callable[[Tensor], Tensor], channels: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._decode = decode
        self._channels = channels
        self._device = device
        self._dtype = dtype
        self._rule: Tensor | None = None

    def show(self, latents: Tensor, digest: str) -> Image:
        """latents: [channels, h, w]. The picture is as large as they are."""
        if self._rule is None:
            self._rule = self._fit()
        channels, height, width = latents.shape
        rows = _with_one(latents.float().reshape(channels, -1).T)
        colours = (rows @ self._rule).clamp_(0, 255).round_().to(torch.uint8)
        return Image(pixels=colours.cpu().numpy().tobytes(), width=width, height=height, digest=digest)

    def _fit(self) -> Tensor:
        """float32 [channels + 1, 3]: least squares over blocks of random latents and what they decode to."""
        generator = torch.Generator("cpu").manual_seed(0)
        blocks = _SIDE // _BLOCK
        drawn = torch.randn((_SAMPLES, self._channels, blocks, blocks), generator=generator)
        latents = drawn.repeat_interleave(_BLOCK, 2).repeat_interleave(_BLOCK, 3)
        pictures = self._decode(latents.to(self._device, self._dtype)).permute(0, 3, 1, 2).float()
        means = torch.nn.functional.adaptive_avg_pool2d(pictures, _SIDE)
        known = _with_one(latents.permute(0, 2, 3, 1).reshape(-1, self._channels))
        rule: Tensor = torch.linalg.lstsq(known, means.permute(0, 2, 3, 1).reshape(-1, 3)).solution
        return rule.to(self._device)


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
