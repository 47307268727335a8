"""Writes ``pocket-dinov3`` to disk: DINOv3's vision transformer at the size of a test, untrained.

Its features follow the picture and mean nothing.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel

from pipelines.pocket.drawing import redraw
from pipelines.pocket.folder import write_once

# Flags of facebook/dinov3-vits16-pretrain-lvd1689m; widths and depths are what tests can afford.
_CONFIG: dict[str, Any] = {
    "patch_size": 16,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_register_tokens": 4,
    "image_size": 224,
}


def build(parent: Path) -> Path:
    """The checkpoint's folder under ``parent``; see ``write_once``."""
    return write_once(parent, "pocket-dinov3", _write)


def _write(folder: Path) -> None:
    model = DINOv3ViTModel(DINOv3ViTConfig(**_CONFIG))
    redraw(model, torch.float32)
    model.save_pretrained(folder)
    size = {"height": _CONFIG["image_size"], "width": _CONFIG["image_size"]}
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": size}) + "\n")
