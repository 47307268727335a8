"""Edits that are kept to a part of the picture, for the Qwen-Image family.

The whole schedule is run. After each step the latents outside the mask become the picture's own, noised to
where the next step begins, and clean after the last: what ``pipeline_qwenimage_edit_inpaint.py`` of diffusers
does at strength 1. It draws the picture's latents from the autoencoder's posterior; here they are its mean,
as they are for references, so a mask does not change the noise that a seed gives.

Pixels outside the mask are the caller's own, resized to the canvas: the autoencoder's rendering of them,
which is what upstream hands back, is close but never equal. The seam is as sharp as the mask.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.request import Image, InferenceRequest, Size
from pipelines.qwen_conditions import fit
from pipelines.qwen_vae import SCALE, pack


@dataclass(frozen=True, slots=True)
class Region:
    """What is painted anew in one picture, and what stands around it.

    painted:  bool [canvas tokens, 64]. picture, noise: of the canvas [tokens, 64], in the model's dtype.
    painted_pixels: bool [height, width, 1]; pixels: uint8 [height, width, 3]; both on the CPU.
    """

    painted: Tensor
    picture: Tensor
    noise: Tensor
    painted_pixels: Tensor
    pixels: Tensor

    def keep(self, latents: Tensor, sigma: float) -> Tensor:
        """``latents`` with the picture around the region, at noise level ``sigma``.

        Source: ``FlowMatchEulerDiscreteScheduler.scale_noise``, in float32 until the end.
        """
        around = sigma * self.noise.float() + (1.0 - sigma) * self.picture.float()
        return torch.where(self.painted, latents, around.to(latents.dtype))

    def paste(self, pixels: Tensor) -> Tensor:
        """``pixels`` uint8 [height, width, 3] within the region, and the caller's around it."""
        return torch.where(self.painted_pixels, pixels, self.pixels)


def read_region(request: InferenceRequest, picture: Tensor | None, noise: Tensor) -> Region | None:
    """The region of a request with a mask; None without one.

    picture: latents of the first picture at the size of the canvas; noise: what the row began with;
    both [tokens, 64].
    """
    if request.mask is None or picture is None:
        return None
    painted = _binarize(request.mask, request.canvas)
    # Of each 8x8 pixels the first decides, as in ``prepare_mask_latents`` upstream.
    latent = painted[::SCALE, ::SCALE].to(picture.device)
    channels = picture.shape[-1] // 4
    kept = fit(request.images[0], request.canvas)
    return Region(
        painted=pack(latent.expand(1, channels, 1, *latent.shape))[0],
        picture=picture,
        noise=noise,
        painted_pixels=painted[..., None],
        pixels=torch.from_numpy(np.array(kept)),
    )


def _binarize(mask: Image, size: Size) -> Tensor:
    """bool [height, width]: where the mask is nearer to white. Source: ``VaeImageProcessor.binarize``."""
    grey = np.array(fit(mask, size).convert("L"))
    return torch.from_numpy(grey / 255.0 >= 0.5)
