"""Writes ``pocket-sam3`` to disk: SAM 3's detector at the size of a test, untrained.

What it finds follows picture and prompt, and means nothing.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.models.sam3.configuration_sam3 import Sam3Config
from transformers.models.sam3.modeling_sam3 import Sam3Model

from pipelines.pocket.clip_vocabulary import BEGIN, END, clip_vocabulary
from pipelines.pocket.drawing import redraw
from pipelines.pocket.folder import write_once

_SIDE, _WIDTH, _MAX_TOKENS = 112, 32, 32
_WORDS = (
    "a an the of in on with and by red blue green yellow black white small large left right cat dog horse "
    "bird fox house car boat tree forest river sky cloud sun flower hat face person woman man child lamp "
    "road door window table chair visual"
)
_DETR: dict[str, Any] = {
    "hidden_size": _WIDTH,
    "num_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 2 * _WIDTH,
}
# At unit gain the queries hardly differ, and all of them find the same wherever they look.
_GAINS = {
    "position_embeddings": 16.0,
    "query_embed.weight": 12.0,
    "query_proj.weight": 3.0,
    "reference_points.weight": 3.0,
    "box_head.layer3.weight": 3.0,
    "box_rpb_embed_x.layer2.weight": 4.0,
    "box_rpb_embed_y.layer2.weight": 4.0,
    "text_cross_attn.o_proj.weight": 0.5,
    "vision_cross_attn.o_proj.weight": 0.5,
    "mask_embedder.layers.2.weight": 4.0,
    "presence_token.weight": 6.0,
    "label_embed.weight": 6.0,
    "cls_embed.weight": 6.0,
}
# The logit that a thing is in the picture at all: without it nothing passes a threshold of .5.
_PRESENCE = 2.0


def build(parent: Path) -> Path:
    """The checkpoint's folder under ``parent``; see ``write_once``."""
    return write_once(parent, "pocket-sam3", _write)


def _write(folder: Path) -> None:
    vocabulary, merges = clip_vocabulary(_WORDS)
    CLIPTokenizer(
        vocab=vocabulary, merges=merges, pad_token=END, model_max_length=_MAX_TOKENS
    ).save_pretrained(folder)
    model = Sam3Model(_configuration(vocabulary))
    redraw(model, torch.float32, _GAINS)
    torch.nn.init.constant_(model.detr_decoder.presence_head.layer3.bias, _PRESENCE)
    model.save_pretrained(folder)
    size = {"height": _SIDE, "width": _SIDE}
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": size}) + "\n")


def _configuration(vocabulary: dict[str, int]) -> Sam3Config:
    """Layout and flags of facebook/sam3's detector; widths and depths are what tests can afford."""
    return Sam3Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": _WIDTH,
                "intermediate_size": 2 * _WIDTH,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "image_size": _SIDE,
                "pretrain_image_size": _SIDE // 2,
                "patch_size": 14,
                "window_size": 4,
                "global_attn_indexes": [1],
            },
            "fpn_hidden_size": _WIDTH,
            "backbone_feature_sizes": [[_SIDE // 14 * scale] * 2 for scale in (4, 2, 1)],
        },
        text_config={
            "model_type": "clip_text_model",
            "vocab_size": len(vocabulary),
            "hidden_size": _WIDTH,
            "intermediate_size": 2 * _WIDTH,
            "projection_dim": _WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": _MAX_TOKENS,
            "hidden_act": "gelu",
            "bos_token_id": vocabulary[BEGIN],
            "eos_token_id": vocabulary[END],
            "pad_token_id": vocabulary[END],
        },
        geometry_encoder_config=_DETR,
        detr_encoder_config=_DETR,
        detr_decoder_config={**_DETR, "num_queries": 24},
        mask_decoder_config={"hidden_size": _WIDTH, "num_attention_heads": 4},
    )
