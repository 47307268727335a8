"""From pictures to latents and back, for the SDXL family; and from a mask to latents.

Parity is with ``_encode_vae_image``, the processing of pictures and masks, and the end of ``__call__`` in
diffusers' ``pipeline_stable_diffusion_xl_inpaint.py``.
"""

from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image as pillow
from torch import Tensor

from core.request import Image, Size
from pipelines.denoising import require_finite

SCALE = 8  # pixels per latent along one side
_PIXELS_PER_CALL = 1024 * 1024  # one such picture fills a GPU; smaller ones share a call


class PictureVae:
    """vae: an ``AutoencoderKL``, in its own dtype, which may be wider than the denoiser's."""

    def __init__(self, vae: Any, device: torch.device, dtype: torch.dtype) -> None:
        self._vae = vae
        self._device = device
        self._dtype = dtype  # of latents

    def encode(self, pictures: Tensor) -> Tensor:
        """Where the latents of pictures [n, 3, height, width] in -1 ... 1 lie: [n, 2 * channels, h, w]."""
        share = _share(*pictures.shape[-2:])
        parts = torch.split(pictures.to(self._device, self._vae.dtype), share)
        return torch.cat([self._vae.encode(part).latent_dist.parameters for part in parts])

    def sample(self, moments: Tensor, generator: torch.Generator) -> Tensor:
        """Latents [1, channels, h, w] of one picture, drawn from where they lie.

        moments: [2 * channels, h, w] of ``encode``.
        """
        drawn = DiagonalGaussianDistribution(moments[None]).sample(generator).to(self._dtype)
        latents: Tensor = self._vae.config.scaling_factor * drawn
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures uint8 [n, height, width, 3] on the CPU, of latents [n, channels, h, w].

        Raises ``ExecutionError`` when a value is not finite.
        """
        height, width = (side * SCALE for side in latents.shape[-2:])
        return torch.cat([self._decode(part) for part in torch.split(latents, _share(height, width))])

    def _decode(self, latents: Tensor) -> Tensor:
        latents = (latents / self._vae.config.scaling_factor).to(self._vae.dtype)
        pictures: Tensor = self._vae.decode(latents, return_dict=False)[0].float()
        require_finite(pictures)
        pictures = pictures.mul_(0.5).add_(0.5).clamp_(0, 1).mul_(255).round_()
        return pictures.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def to_tensor(image: Image, canvas: Size) -> Tensor:
    """float32 [3, height, width] in -1 ... 1. Source: ``VaeImageProcessor.preprocess``."""
    pixels = torch.from_numpy(np.array(_fit(image, canvas))).permute(2, 0, 1)
    return 2.0 * (pixels.float() / 255.0) - 1.0


def to_latent_mask(mask: Image, canvas: Size) -> Tensor:
    """float32 [1, 1, h, w]: 1 where a latent is painted anew, 0 where it is kept.

    Source: the mask processor of the inpainting pipeline and ``prepare_mask_latents``.
    """
    grey = np.array(_fit(mask, canvas).convert("L"), np.float32) / 255.0
    painted = torch.from_numpy((grey >= 0.5).astype(np.float32))[None, None]
    return torch.nn.functional.interpolate(painted, size=(canvas[1] // SCALE, canvas[0] // SCALE))


def _fit(image: Image, size: Size) -> pillow.Image:
    picture = pillow.frombytes("RGB", image.size, image.pixels)
    return picture.resize(size, pillow.Resampling.LANCZOS)


def _share(height: int, width: int) -> int:
    return max(1, _PIXELS_PER_CALL // (width * height))
