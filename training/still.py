"""The autoencoder on single pictures, at a third of the video model's cost, with the same result.

Before a single frame there are only zeros, so of every causal kernel only the last tap in time counts.
Training keeps that tap alone; ``pipelines/pocket/builder.py`` puts zeros back for the standard layout.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    AutoencoderKLQwenImage,
    QwenImageCausalConv3d,
    QwenImageRMS_norm,
)
from torch import Tensor


class _StillConvolution(QwenImageCausalConv3d):  # type: ignore[misc]
    def forward(self, x: Tensor, cache_x: Any = None) -> Tensor:
        kernel = self.weight[:, :, -1]
        return F.conv2d(x.squeeze(2), kernel, self.bias, self.stride[1:], self._padding[0]).unsqueeze(2)


class _StillNorm(QwenImageRMS_norm):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        size = torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-12)
        normed: Tensor = x * (size * self.scale) * self.gamma
        return normed


class StillAutoencoder(torch.nn.Module):
    """An ``AutoencoderKLQwenImage`` of ``config`` for pictures [n, 3, height, width] in -1 ... 1."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.model = AutoencoderKLQwenImage(**config)
        for module in self.model.modules():
            if isinstance(module, QwenImageCausalConv3d):
                module.__class__ = _StillConvolution
                module.weight = torch.nn.Parameter(module.weight[:, :, -1:].contiguous())
            elif isinstance(module, QwenImageRMS_norm):
                module.__class__ = _StillNorm
        for name, weight in self.model.named_parameters():
            weight.requires_grad_("time_conv" not in name)  # never met by a single frame
        _start(self.model)

    def encode(self, pictures: Tensor) -> Tensor:
        """The posterior's mean [n, 16, height / 8, width / 8], not normalised."""
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        both = self.model.quant_conv(self.model.encoder(pictures.unsqueeze(2))).squeeze(2)
        mean: Tensor = both.chunk(2, dim=1)[0]
        return mean

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse, not clamped."""
        frames = self.model.post_quant_conv(latents.unsqueeze(2))
        pictures: Tensor = self.model.decoder(frames).squeeze(2)
        return pictures


def _start(model: AutoencoderKLQwenImage) -> None:
    """Begin as a nearly linear map that keeps what it can of its input.

    The library's own start shrinks the signal layer by layer, and colour is then not learned for long:
    every path outside the residual branches is made semi-orthogonal, and the branches begin small.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.ndim >= 4 and not name.endswith("gamma"):
                taps = weight.shape[-1]
                if ".conv2." in name or ".proj." in name:
                    weight.mul_(0.3)
                elif ".conv1." in name or ".to_qkv." in name:
                    torch.nn.init.kaiming_normal_(weight)
                elif "downsampler.resample" in name or "conv_in" in name:
                    # Every input pixel is met once: the 2x2 taps of a stride of 2.
                    inner = torch.empty(weight.shape[0], weight.shape[1] * 4)
                    torch.nn.init.orthogonal_(inner)
                    weight.mul_(0.2)
                    weight[..., :2, :2] += inner.view((*weight.shape[:-2], 2, 2))
                else:
                    middle = torch.empty(weight.shape[0], weight.shape[1])
                    torch.nn.init.orthogonal_(middle)
                    weight.mul_(0.3)
                    weight[..., taps // 2, taps // 2] += middle.view(weight.shape[:-2])
