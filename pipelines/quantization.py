"""Makes the linear layers of a read model smaller, in place, one layer on the device at a time.

In place because adapters must be fused before it, and so that a card never holds both forms of a model.
Nothing here couples rows of a batch: every scale belongs to one row of activations or of weights.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from pipelines.importing import undisturbed
from pipelines.precision import Role, Scheme, refused

# Parts of names, in full. What is small and decides much stays whole: the projections in and out of the
# latents, the embedding of time, final norms. The first block's modulation of the picture scales what all
# later blocks see and is 0.3 % of Qwen-Image's weights. The vision tower asks for the format of its own
# weights; heads are not asked at all, or project what was pooled.
SKIPPED: Mapping[Role, tuple[str, ...]] = {
    "denoiser": (
        *("proj_out", "norm_out", "img_in", "txt_in", "time_text_embed", "transformer_blocks.0.img_mod"),
        *("time_embedding", "add_embedding", "time_emb_proj"),  # SDXL's names for the embedding of time
    ),
    "text": ("visual", "lm_head", "text_projection"),
    "vae": (),
}
# These layers see one vector for each row of the batch, and a GPU's int8 product wants 17 or more.
_MODULATIONS = ("img_mod", "txt_mod")

Convert = Callable[[nn.Linear, str], nn.Module]


def quantize(
    model: nn.Module,
    role: Role,
    scheme: Scheme,
    *,
    compute: torch.dtype,
    device: torch.device,
    skipped: Mapping[Role, tuple[str, ...]] = SKIPPED,
) -> int:
    """How many layers of ``model`` were replaced; those are on ``device``, the rest where it was.

    compute: format of activations. Raises ``CapacityError`` ``not_ready`` when there was nothing to do.
    """
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and not _is_part(name, skipped[role])
    ]
    if not layers:
        raise refused("this checkpoint holds no layer to quantize; set PRECISION_MODE=bf16")
    convert = _converter(scheme, compute, device)
    for name, layer in layers:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, convert(layer, name))
    if scheme == "bitsandbytes-int8":
        setattr(model, "is_loaded_in_8bit", True)  # noqa: B010 - peft asks for it before it adapts such a layer
    return len(layers)


def _is_part(name: str, parts: tuple[str, ...]) -> bool:
    return any(f".{part}." in f".{name}." for part in parts)


def _converter(scheme: Scheme, compute: torch.dtype, device: torch.device) -> Convert:
    if scheme == "bitsandbytes-int8":
        from pipelines.int8_linear import Int8Linear

        return lambda layer, name: Int8Linear.of(layer, device)
    if scheme == "bitsandbytes-nf4":
        return partial(_nf4, compute=compute, device=device)
    if scheme == "fp8-layerwise":
        return partial(_fp8_layerwise, compute=compute, device=device)
    return partial(_torchao, scheme=scheme, device=device, configs=_torchao_configs())


def _nf4(layer: nn.Linear, name: str, *, compute: torch.dtype, device: torch.device) -> nn.Module:
    import bitsandbytes as bnb

    small = bnb.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        layer.bias is not None,
        compute_dtype=compute,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    small.weight = bnb.nn.Params4bit(
        layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=small
    ).to(device)  # quantizes
    small.bias = layer.bias
    # A kernel of some CPUs: it rounds products to bf16, and fails on rows of less than a block of 64.
    small.support_avx512bf16_for_cpu = False
    done: nn.Module = small.requires_grad_(False).eval()
    return done


def _fp8_layerwise(layer: nn.Linear, name: str, *, compute: torch.dtype, device: torch.device) -> nn.Module:
    from diffusers.hooks.layerwise_casting import apply_layerwise_casting

    apply_layerwise_casting(layer.to(device), torch.float8_e4m3fn, compute, skip_modules_pattern=None)
    return layer


def _torchao_configs() -> dict[Scheme, Any]:
    with undisturbed():
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            Float8WeightOnlyConfig,
            Int8DynamicActivationInt8WeightConfig,
            Int8WeightOnlyConfig,
            PerRow,
        )
    # Its own settings of the compiler are for compiled models that are never run at another shape.
    quiet: dict[str, Any] = {"granularity": PerRow(), "set_inductor_config": False}
    return {
        "torchao-int8": Int8DynamicActivationInt8WeightConfig(**quiet),
        "torchao-int8-weights": Int8WeightOnlyConfig(**quiet),
        "torchao-fp8": Float8DynamicActivationFloat8WeightConfig(**quiet),
        "torchao-fp8-weights": Float8WeightOnlyConfig(**quiet),
    }


def _torchao(
    layer: nn.Linear, name: str, *, scheme: Scheme, device: torch.device, configs: Mapping[Scheme, Any]
) -> nn.Module:
    from torchao.quantization import quantize_

    if _is_part(name, _MODULATIONS):
        scheme = "torchao-fp8-weights" if scheme.startswith("torchao-fp8") else "torchao-int8-weights"
    quantize_(layer.to(device), configs[scheme], filter_fn=lambda module, _: module is layer)
    return layer
