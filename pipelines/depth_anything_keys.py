"""Names of Depth Anything 3's weights in transformers' modules, and the architecture that they tell.

Source: DinoVisionTransformer and DPT of depth_anything_3's model/, Dinov2Backbone and DepthAnything of
transformers.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from transformers.models.depth_anything.configuration_depth_anything import DepthAnythingConfig
from transformers.models.dinov2.configuration_dinov2 import Dinov2Config

from core.errors import CapacityError

_HEAD_WIDTH = 64  # of an attention head, in every size of DINOv2
# Blocks that are seen where a configuration does not say: upstream's configs/da3mono-large.yaml.
_SEEN = (4, 11, 17, 23)

# The first that fits a name.
_NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"backbone\.pretrained\.cls_token", r"backbone.embeddings.cls_token"),
        (r"backbone\.pretrained\.pos_embed", r"backbone.embeddings.position_embeddings"),
        (r"backbone\.pretrained\.patch_embed\.proj", r"backbone.embeddings.patch_embeddings.projection"),
        (r"backbone\.pretrained\.norm\.", r"backbone.layernorm."),
        (r"backbone\.pretrained\.blocks\.(\d+)\.attn\.proj", r"backbone.encoder.layer.\1.attention.o_proj"),
        (r"backbone\.pretrained\.blocks\.(\d+)\.attn\.qkv", r"backbone.encoder.layer.\1.attention.qkv"),
        (
            r"backbone\.pretrained\.blocks\.(\d+)\.ls([12])\.gamma",
            r"backbone.encoder.layer.\1.layer_scale\2.lambda1",
        ),
        (r"backbone\.pretrained\.blocks\.(\d+)\.(norm[12]|mlp\.fc[12])\.", r"backbone.encoder.layer.\1.\2."),
        (r"head\.projects\.(\d)", r"neck.reassemble_stage.layers.\1.projection"),
        (r"head\.resize_layers\.(\d)", r"neck.reassemble_stage.layers.\1.resize"),
        (r"head\.scratch\.output_conv1", r"head.conv1"),
        (r"head\.scratch\.output_conv2\.0", r"head.conv2"),
        (r"head\.scratch\.output_conv2\.2", r"head.conv3"),
        (r"head\.scratch\.sky_output_conv2", r"head.sky"),
    )
)
_BLOCK = re.compile(r"backbone\.encoder\.layer\.(\d+)\.")
_LAYER = re.compile(r"head\.scratch\.layer([1-4])_rn\.weight")
_FUSION = re.compile(r"head\.scratch\.refinenet([1-4])\.(?:resConfUnit([12])\.conv([12])|out_conv)\.(\w+)")


def translate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's weights by transformers' names, in fp32; what has no place there is left out."""
    return {
        name: value.float()
        for key, tensor in tensors.items()
        for name, value in _placed(key.removeprefix("model."), tensor)
    }


def _placed(key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Queries, keys and values are one matrix there and three here."""
    name = _name(key)
    if name is None:
        return
    if ".attention.qkv." not in name:
        yield name, tensor
        return
    for part, value in zip("qkv", tensor.chunk(3), strict=True):
        yield name.replace(".qkv.", f".{part}_proj."), value


def _name(key: str) -> str | None:
    if found := _LAYER.fullmatch(key):
        return f"neck.convs.{int(found[1]) - 1}.weight"
    if found := _FUSION.fullmatch(key):
        level, unit, conv, kind = found.groups()
        layer = f"neck.fusion_stage.layers.{4 - int(level)}"  # the coarsest is the last there, the first here
        return (
            f"{layer}.residual_layer{unit}.convolution{conv}.{kind}" if unit else f"{layer}.projection.{kind}"
        )
    for pattern, name in _NAMES:
        if pattern.match(key):
            return pattern.sub(name, key, count=1)
    return None


def architecture(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> DepthAnythingConfig:
    """Widths and depths are those of the weights; which layers are seen is in the configuration.

    config: the checkpoint's own. weights: as ``translate`` gives them.
    Raises ``CapacityError`` ``not_ready`` where they are of no such network.
    """
    net = config.get("config", {}).get("net", {})
    try:
        width = weights["backbone.embeddings.cls_token"].shape[-1]
        positions = weights["backbone.embeddings.position_embeddings"].shape[1] - 1
        patch = weights["backbone.embeddings.patch_embeddings.projection.weight"].shape[-1]
        stages = [weights[f"neck.reassemble_stage.layers.{i}.projection.weight"].shape[0] for i in range(4)]
        fused = weights["head.conv1.weight"].shape[1]
        hidden = weights["head.conv2.weight"].shape[0]
    except KeyError as error:
        raise _unfit(f"there is no {error.args[0]}") from error
    return DepthAnythingConfig(
        backbone_config=Dinov2Config(
            hidden_size=width,
            num_hidden_layers=1 + max(int(found[1]) for found in map(_BLOCK.match, weights) if found),
            num_attention_heads=int(net.get("num_heads", width // _HEAD_WIDTH)),
            image_size=round(positions**0.5) * patch,
            patch_size=patch,
            use_mask_token=False,
            out_features=[f"stage{layer + 1}" for layer in net.get("out_layers", _SEEN)],
            reshape_hidden_states=False,
        ),
        patch_size=patch,
        reassemble_hidden_size=width,
        neck_hidden_sizes=stages,
        fusion_hidden_size=fused,
        head_hidden_size=hidden,
    )


def fill(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give ``network`` its weights; those it has no place for are left out, as upstream does.

    Raises ``CapacityError`` ``not_ready`` where one is missing or of another shape.
    """
    try:
        missing = network.load_state_dict(weights, strict=False, assign=True).missing_keys
    except RuntimeError as error:
        raise _unfit(str(error).replace("\n", " ")) from error
    if missing:
        raise _unfit(f"there is no {missing[0]}")


def _unfit(why: str) -> CapacityError:
    return CapacityError(
        "not_ready",
        f"the checkpoint's weights are not those of this Depth Anything 3 network: {why[:200]}; "
        "use one of that model",
        retryable=False,
    )
