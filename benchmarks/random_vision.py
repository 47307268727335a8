"""The vision pipelines with random weights: as large as the real models, or the pocket checkpoints.

What is timed with them is what the real weights cost; what they find means nothing.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.models.depth_anything.configuration_depth_anything import DepthAnythingConfig
from transformers.models.dinov2.configuration_dinov2 import Dinov2Config
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel
from transformers.models.grounding_dino.configuration_grounding_dino import GroundingDinoConfig
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoForObjectDetection
from transformers.models.sam3.configuration_sam3 import Sam3Config
from transformers.models.swin.configuration_swin import SwinConfig

from benchmarks.random_models import Drawn
from core.spec import PipelineSpec
from pipelines.depth_anything import DepthAnything, Release
from pipelines.depth_anything_networks import DepthAnything3
from pipelines.depth_anything_pixels import preprocess_v3
from pipelines.dinov3 import DINOv3
from pipelines.grounding_dino import GroundingDINO
from pipelines.grounding_text import read_tokenizer
from pipelines.options import ModelOptions, Silent
from pipelines.registry import catalog
from pipelines.sam3 import Sam3
from pipelines.sam3_boxes import Detector
from pipelines.vision_loading import VisionLoader

Make = Callable[[VisionLoader, Any, PipelineSpec], Any]


def segmenter() -> Any:
    """The class defaults of transformers are facebook/sam3's."""
    return Detector(Sam3Config())


def detector() -> Any:
    """Source: config.json of IDEA-Research/grounding-dino-base; all else is the class's default."""
    swin = SwinConfig(
        embed_dim=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        window_size=12,
        image_size=384,
        out_indices=[2, 3, 4],
    )
    return GroundingDinoForObjectDetection(
        GroundingDinoConfig(backbone_config=swin, text_config=BertConfig())
    )


def diver() -> Any:
    """Source: da3mono-large.yaml of Depth-Anything-3: a ViT-L, and the widths of its DPT."""
    trunk = Dinov2Config(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=518,
        patch_size=14,
        use_mask_token=False,
        out_features=["stage5", "stage12", "stage18", "stage24"],
        reshape_hidden_states=False,
    )
    return DepthAnything3(
        DepthAnythingConfig(
            backbone_config=trunk,
            patch_size=14,
            reassemble_hidden_size=1024,
            neck_hidden_sizes=[256, 512, 1024, 1024],
            fusion_hidden_size=256,
            head_hidden_size=32,
        )
    )


def feeler() -> Any:
    """Source: config.json of facebook/dinov3-vith16plus-pretrain-lvd1689m."""
    return DINOv3ViTModel(
        DINOv3ViTConfig(
            patch_size=16,
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=20,
            num_register_tokens=4,
            use_gated_mlp=True,
            hidden_act="silu",
        )
    )


def _segmenting(loader: VisionLoader, model: Any, spec: PipelineSpec) -> Any:
    assert spec.vision is not None
    tokenizer = CLIPTokenizer.from_pretrained(loader.folder, local_files_only=True)
    return Sam3(loader, model, tokenizer, spec.vision, cache_bytes=0)


def _detecting(loader: VisionLoader, model: Any, spec: PipelineSpec) -> Any:
    assert spec.vision is not None
    return GroundingDINO(loader, model, read_tokenizer(loader.folder), spec.vision.max_found)


@dataclass(frozen=True, kw_only=True)
class Family:
    """row: of the full size. pocket: whose files beside the weights are used at either size.

    parameters: of the network that ``network`` makes, in millions, to the tenth part.
    """

    row: str
    pocket: str
    model_type: tuple[str, ...]
    network: Callable[[], Any]
    pipeline: Make
    parameters: int
    ranks: bool = False


FAMILIES: Mapping[str, Family] = {
    "sam3": Family(
        row="sam3",
        pocket="pocket-sam3",
        model_type=("sam3", "sam3_video"),
        network=segmenter,
        pipeline=_segmenting,
        parameters=840,
    ),
    "grounding-dino": Family(
        row="grounding-dino-base",
        pocket="pocket-grounding-dino",
        model_type=("grounding-dino",),
        network=detector,
        pipeline=_detecting,
        parameters=233,
        ranks=True,
    ),
    "depth-anything": Family(
        row="da3mono-large",
        pocket="pocket-depth",
        model_type=("pocket-depth",),
        network=diver,
        pipeline=lambda loader, model, spec: DepthAnything(loader, model, Release(read=preprocess_v3)),
        parameters=334,
    ),
    "dinov3": Family(
        row="dinov3-vith16plus",
        pocket="pocket-dinov3",
        model_type=("dinov3_vit",),
        network=feeler,
        pipeline=lambda loader, model, spec: DINOv3(loader, model),
        parameters=840,
    ),
}


def drawn(family: Family, options: ModelOptions, device: torch.device) -> tuple[PipelineSpec, Any]:
    """The full-size row, and its pipeline with weights drawn on the device."""
    spec = catalog(family.row).default
    given = replace(spec, source=f"builtin:{family.pocket}")
    loader = VisionLoader(given, options, Silent(), model_type=family.model_type, ranks=family.ranks)
    weights = Drawn(family.network, device).from_pretrained(dtype=torch.float32)
    return spec, family.pipeline(loader, loader.place(weights), spec)


def pocket(family: Family, options: ModelOptions) -> tuple[PipelineSpec, Any]:
    spec = catalog(family.pocket).default
    module, _, function = spec.factory.partition(":")
    return spec, getattr(importlib.import_module(module), function)(spec, options, Silent())
