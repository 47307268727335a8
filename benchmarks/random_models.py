"""Models of the Qwen-Image-Edit family with random weights: as large as the real ones, or as the pocket's.

What is timed with them is what the real weights cost; their pictures mean nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from torch import nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

from pipelines.pocket import architecture, builder

# Sources: the class defaults of diffusers, which are Qwen/Qwen-Image's, and Qwen2.5-VL-7B's config.json.
_TEXT = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """In the place of a class to be read: ``from_pretrained`` draws the weights on the host instead."""

    make: Callable[[], Any]
    device: torch.device

    def from_pretrained(self, *_: Any, dtype: torch.dtype, **__: Any) -> Any:
        with init_empty_weights(include_buffers=False):
            model = self.make()
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                module._parameters[name] = nn.Parameter(self._draw(name, weight, dtype), requires_grad=False)
        return model

    def _draw(self, name: str, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """At half of unit gain, so that sixty blocks stay finite; drawn where that is fast."""
        value = torch.empty(weight.shape, dtype=dtype, device=self.device)
        if name.endswith("bias"):
            value.zero_()
        elif math.prod(weight.shape) == weight.shape[0]:
            value.fill_(1.0)  # of a norm
        else:
            value.normal_(0, 0.5 / math.sqrt(math.prod(weight.shape[1:])))
        return value.cpu()


def transformer(device: torch.device, *, full: bool) -> Drawn:
    sizes: dict[str, Any] = {"zero_cond_t": True} if full else architecture.TRANSFORMER
    return Drawn(lambda: QwenImageTransformer2DModel(**sizes), device)


def autoencoder(device: torch.device, *, full: bool) -> Drawn:
    return Drawn(lambda: AutoencoderKLQwenImage(**({} if full else architecture.VAE)), device)


def text_encoder(device: torch.device, tokenizer: Any, *, full: bool) -> Drawn:
    """tokenizer: the pocket's; the few words that it has are among the vocabulary of either size."""
    config = builder.text_encoder_config(tokenizer)
    if full:
        ids = {
            key: getattr(config, key)
            for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        }
        config = Qwen2_5_VLConfig(text_config=_TEXT, vision_config=_VISION, tie_word_embeddings=False, **ids)
    return Drawn(lambda: Qwen2_5_VLForConditionalGeneration(config), device)
