"""From pictures to packed latents and back, for the Qwen-Image family.

Parity is with ``_encode_vae_image`` and the end of ``__call__`` in diffusers'
``pipeline_qwenimage_edit_plus.py``.
"""

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from torch import Tensor

from core.request import Size
from pipelines.denoising import require_finite

SCALE = 8  # pixels per latent along one side
_PIXELS_PER_CALL = 1024 * 1024  # one such picture fills a GPU; smaller ones share a call


class PictureVae:
    """vae: an ``AutoencoderKLQwenImage``; it is made to hold still pictures only.

    Its ``use_tiling`` and ``use_slicing`` count here as in its own ``encode`` and ``decode``.
    """

    def __init__(self, vae: Any, device: torch.device, dtype: torch.dtype) -> None:
        keep_still_pictures(vae)
        self._vae = vae
        self._device = device
        self._dtype = dtype
        shape = (1, vae.config.z_dim, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean).view(shape).to(device, dtype)
        self._deviation = torch.tensor(vae.config.latents_std).view(shape).to(device, dtype)
        self.nothing = torch.empty(0, vae.config.z_dim * 4, device=device, dtype=dtype)  # of no picture

    def encode(self, pictures: Tensor) -> Tensor:
        """Packed latents [n, tokens, channels * 4] of pictures [n, 3, height, width] in -1 ... 1."""
        height, width = pictures.shape[-2:]
        parts = torch.split(pictures, self._share(width, height))
        return torch.cat([self._encode(part) for part in parts])

    def decode(self, latents: Tensor, canvas: Size) -> Tensor:
        """Pictures uint8 [n, height, width, 3] on the CPU, of packed latents [n, tokens, channels * 4].

        canvas: (width, height), multiples of 16.
        Raises ``ExecutionError`` when a value is not finite.
        """
        parts = torch.split(latents, self._share(*canvas))
        return torch.cat([self._decode(part, canvas) for part in parts])

    def decode_square(self, latents: Tensor) -> Tensor:
        """As ``decode``, of latents [n, channels, side, side] that are not packed; ``side`` is even."""
        side = latents.shape[-1] * SCALE
        return self.decode(pack(latents.unsqueeze(2)), (side, side))

    def _encode(self, pictures: Tensor) -> Tensor:
        frames = pictures.to(self._device, self._dtype).unsqueeze(2)
        if self._in_tiles(pictures.shape[-1], pictures.shape[-2]):
            moments = self._vae.tiled_encode(frames)
        else:
            moments = self._vae.quant_conv(self._vae.encoder(frames))
        mean, _ = moments.chunk(2, dim=1)
        return pack((mean - self._mean) / self._deviation)

    def _decode(self, latents: Tensor, canvas: Size) -> Tensor:
        frames = unpack(latents, canvas).to(self._dtype)
        frames = frames / (1.0 / self._deviation) + self._mean
        if self._in_tiles(*canvas):
            decoded: Tensor = self._vae.tiled_decode(frames, return_dict=False)[0]
        else:
            decoded = self._vae.decoder(self._vae.post_quant_conv(frames))
        pictures = decoded[:, :, 0].float()
        require_finite(pictures)
        pictures = pictures.mul_(0.5).add_(0.5).clamp_(0, 1).mul_(255).round_()
        return pictures.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()

    def _in_tiles(self, width: int, height: int) -> bool:
        vae = self._vae
        large = width > vae.tile_sample_min_width or height > vae.tile_sample_min_height
        return bool(vae.use_tiling and large)

    def _share(self, width: int, height: int) -> int:
        return 1 if self._vae.use_slicing else max(1, _PIXELS_PER_CALL // (width * height))


def keep_still_pictures(vae: Any) -> None:
    """Cut every kernel of the causal video autoencoder down to its last tap in time, in place.

    The frames before a single frame are zeros, so the other taps multiply nothing: the result is the same
    and costs a third. Idempotent.
    """
    for module in vae.modules():
        if isinstance(module, QwenImageCausalConv3d) and module.kernel_size[0] > 1:
            module.weight = torch.nn.Parameter(module.weight[:, :, -1:].contiguous(), requires_grad=False)
            module.kernel_size = (1, *module.kernel_size[1:])
            module._padding = (*module._padding[:4], 0, 0)


def pack(frames: Tensor) -> Tensor:
    """[n, channels, 1, height, width] to [n, height / 2 * width / 2, channels * 4]: 2x2 patches."""
    n, channels, _, height, width = frames.shape
    patches = frames.view(n, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(n, height // 2 * (width // 2), channels * 4)


def unpack(latents: Tensor, canvas: Size) -> Tensor:
    """The inverse of ``pack`` for a canvas (width, height) in pixels."""
    n, _, channels = latents.shape
    width, height = (side // SCALE for side in canvas)
    patches = latents.view(n, height // 2, width // 2, channels // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(n, channels // 4, 1, height, width)
