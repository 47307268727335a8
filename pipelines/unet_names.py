"""A UNet's layers under the names of the code it was first published in, by which many LoRAs call them.

Source: ``_maybe_map_sgm_blocks_to_diffusers`` and ``_convert_unet_lora_key`` of diffusers'
``lora_conversion_utils.py``, which go the other way.
"""

import re
from collections.abc import Iterable

_ALONE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_IN_RESNETS = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(\w+)\.(\d+)\.(.+)")


def original_names(names: Iterable[str], layers_per_block: int) -> dict[str, str]:
    """By original name, the name of each layer that has one.

    names: of the UNet's layers as diffusers has them; of another architecture they give nothing.
    """
    pairs = ((_original(name, layers_per_block), name) for name in names)
    return {original: name for original, name in pairs if original is not None}


def _original(name: str, layers: int) -> str | None:
    match = _BLOCK.fullmatch(name)
    if match is None:
        return _ALONE.get(name)
    block, kind, number, inner = match[1], match[2], int(match[3]), match[4]
    if kind == "resnets":
        inner = _IN_RESNETS.get(inner, inner)
    if block == "mid_block":
        return f"middle_block.{number * 2 if kind == 'resnets' else 1}.{inner}"
    side, _, index = block.partition(".")
    place = int(index) * (layers + 1)
    place += layers if kind in ("downsamplers", "upsamplers") else number
    if side == "down_blocks":
        within = {"attentions": "1", "resnets": "0", "downsamplers": "0"}[kind]
        return f"input_blocks.{place + 1}.{within}.{'op' if kind == 'downsamplers' else inner}"
    return f"output_blocks.{place}.{({'resnets': 0, 'attentions': 1, 'upsamplers': 2})[kind]}.{inner}"
