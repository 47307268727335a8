"""Low-rank changes in a model: matched with its layers, read, put on unfused, and taken off without a trace.

The injected layers are peft's. What a file calls its layers is ``lora_keys``' business.
"""

import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipelines.lora_files import LoraFile
from pipelines.lora_keys import BadLora, Layer, Part, family_of
from pipelines.unet_names import original_names

# alpha by rank; published files stay below 4, and a factor of hundreds leaves no picture.
MAX_SCALE = 32.0


class Factors(NamedTuple):
    """What one layer gains: ``up @ down``, the file's scale within ``up``."""

    down: Tensor
    up: Tensor


Factored = dict[Part, dict[str, Factors]]


class Targets:
    """The layers of a pipeline's models that a LoRA can change, as they are before any is put on.

    models: the denoiser, and the text encoders where the family has LoRAs for them.
    """

    def __init__(self, models: Mapping[Part, Any]) -> None:
        self.models = dict(models)
        self._layers = {part: _layers(model) for part, model in models.items()}
        self._known = {part: self._names(part) for part in models}

    def _names(self, part: Part) -> dict[str, str]:
        """By every name that files have for it, the name of each layer."""
        names = dict.fromkeys(self._layers[part])
        known = {name: name for name in names}
        if part == "denoiser":
            per_block = getattr(self.models[part].config, "layers_per_block", None)
            known |= original_names(names, per_block) if isinstance(per_block, int) else {}
        else:
            # transformers 5 has a text encoder without the outer level that older files speak of.
            known |= {f"text_model.{name}": name for name in names if not name.startswith("text_model.")}
        return known | {other.replace(".", "_"): name for other, name in known.items()}

    def match(self, file: LoraFile) -> dict[Part, dict[str, Layer]]:
        """By part and name, the model's layer that each of the file's changes.

        Raises ``BadLora`` when one is not there, has another shape, or can take no LoRA: part of a LoRA is
        none.
        """
        matched: dict[Part, dict[str, Layer]] = {}
        for layer in file.layers:
            name = self._known.get(layer.part, {}).get(layer.module)
            if name is None:
                raise BadLora(f"it is made for {family_of(file.layers)} models: this one has no such layers")
            module = self._layers[layer.part][name]
            if (layer.down.shape, layer.up.shape) != _fitting_shapes(module, layer.rank):
                raise BadLora(f"it is made for another size of {family_of(file.layers)} model")
            if (reason := _refusal(module)) is not None:
                raise BadLora(reason)
            if matched.setdefault(layer.part, {}).setdefault(name, layer) is not layer:
                raise BadLora("it changes one layer twice, under two names")
        return matched


def read(
    file: LoraFile,
    matched: Mapping[Part, Mapping[str, Layer]],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Factored:
    """The factors of every matched layer. Raises ``BadLora`` for values that are no numbers, or vast."""
    try:
        with safe_open(file.path, "pt") as tensors:
            return {
                part: {
                    name: _factors(tensors, layer, dtype=dtype, device=device)
                    for name, layer in layers.items()
                }
                for part, layers in matched.items()
            }
    except (SafetensorError, OSError) as error:
        raise BadLora("it cannot be read, or was changed while it was") from error


def attach(model: Any, adapter: str, factors: Mapping[str, Factors]) -> None:
    """Put the adapter beside every layer named, inactive. Raises ``BadLora`` when one did not take it."""
    from peft import LoraConfig, inject_adapter_in_model

    ranks = {name: len(factor.down) for name, factor in factors.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    unusual = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != usual}
    config = LoraConfig(
        r=usual,
        lora_alpha=usual,
        rank_pattern=unusual,
        alpha_pattern=dict(unusual),
        target_modules="|".join(re.escape(name) for name in factors),
        inference_mode=True,
    )
    with warnings.catch_warnings():
        # That there is an adapter already, and that torchao's weights could not be merged into.
        warnings.filterwarnings("ignore", message="Already found|.*get_apply_tensor_subclass")
        inject_adapter_in_model(config, model, adapter, low_cpu_mem_usage=True)
    for name, factor in factors.items():
        layer = model.get_submodule(name)
        for kept, weight in ((layer.lora_A, factor.down), (layer.lora_B, factor.up)):
            kept[adapter].weight = torch.nn.Parameter(weight, requires_grad=False)
        layer.set_adapter([], inference_mode=True)
    applied = sum(adapter in layer.lora_A for _, layer in adapted(model))
    if applied != len(factors):
        raise BadLora(f"{applied} of its {len(factors)} layers were applied")


def detach(model: Any, adapter: str) -> None:
    """Take the adapter off, whole or half put on; layers without another are again the model's own."""
    for name, layer in adapted(model):
        if adapter in layer.lora_A:
            layer.set_adapter([], inference_mode=True)  # or peft would activate another in its place
            layer.delete_adapter(adapter)
        if not layer.lora_A:
            model.set_submodule(name, layer.base_layer)
    configs = getattr(model, "peft_config", {})
    configs.pop(adapter, None)
    if not configs and hasattr(model, "peft_config"):
        del model.peft_config


def adapted(model: Any) -> list[tuple[str, Any]]:
    """The layers that have adapters beside them, by name."""
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]


def _layers(model: Any) -> dict[str, Any]:
    kinds = (torch.nn.Linear, torch.nn.Conv2d)  # quantized layers are kinds of Linear
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _fitting_shapes(module: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if isinstance(module, torch.nn.Conv2d):
        inner = (rank, module.in_channels // module.groups, *module.kernel_size)
        return inner, (module.out_channels, rank, 1, 1)
    return (rank, module.in_features), (module.out_features, rank)


def _refusal(module: Any) -> str | None:
    """Why this layer can take no adapter as it is held now."""
    if type(module).__name__ == "Linear4bit":
        return "the model is held in 4 bits, which take none; set PRECISION_MODE to 8bit or bf16"
    # torchao's tensors say the number format that they compute in, bitsandbytes' that of integers.
    if module.weight.dtype.itemsize == 1 and module.weight.dtype.is_floating_point:
        return (
            "the model is held in 8-bit floats layer by layer, which take none; "
            "set EIGHT_BIT_BACKEND to bitsandbytes or torchao-int8"
        )
    if module.weight.is_meta:
        return "the model is loaded layer by layer, which takes none; set OFFLOAD to none or model"
    return None


def _factors(tensors: Any, layer: Layer, *, dtype: torch.dtype, device: torch.device) -> Factors:
    scale = layer.scale
    if layer.alpha is not None:
        scale = float(tensors.get_tensor(layer.alpha).item()) / layer.rank
    if not (math.isfinite(scale) and abs(scale) <= MAX_SCALE):
        raise BadLora(f"an alpha of it is not within {MAX_SCALE:g} times its rank")
    down = tensors.get_tensor(layer.down.key)
    up = tensors.get_tensor(layer.up.key).float() * scale
    down, up = down.to(device, dtype), up.to(device, dtype)
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise BadLora("it holds values that are no numbers")
    return Factors(down, up)
