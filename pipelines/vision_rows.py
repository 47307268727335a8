"""The vision models this worker knows, as rows of facts for ``pipelines/registry.py``. Torch-free."""

from dataclasses import replace

from core.request import Task
from core.spec import PipelineSpec
from core.vision_spec import VisionSpec

# Sizes are those of each checkpoint's own image processor.
_DINOV3 = PipelineSpec(
    name="dinov3-convnext-tiny",
    factory="pipelines.dinov3:load",
    source="facebook/dinov3-convnext-tiny-pretrain-lvd1689m",
    tasks=frozenset({Task.EMBED}),
    vision=VisionSpec(fit="square", side=224, patch=32),
    vram_gb=0.2,
    licence="DINOv3 License",
    needs_gpu=False,
)
_VIT = VisionSpec(fit="square", side=224, patch=16)
_SAM3 = PipelineSpec(
    name="sam3",
    factory="pipelines.sam3:load",
    source="facebook/sam3",
    tasks=frozenset({Task.SEGMENT}),
    vision=VisionSpec(fit="square", side=1008, patch=14),
    vram_gb=6.0,
    licence="SAM License",
    needs_gpu=False,
)

VISION: tuple[PipelineSpec, ...] = (
    replace(_DINOV3, aliases=("dinov3",)),
    replace(
        _DINOV3,
        name="dinov3-convnext-large",
        source="facebook/dinov3-convnext-large-pretrain-lvd1689m",
        vram_gb=1.0,
    ),
    replace(
        _DINOV3,
        name="dinov3-vits16",
        source="facebook/dinov3-vits16-pretrain-lvd1689m",
        vision=_VIT,
        vram_gb=0.2,
    ),
    replace(
        _DINOV3,
        name="dinov3-vith16plus",
        source="facebook/dinov3-vith16plus-pretrain-lvd1689m",
        vision=_VIT,
        vram_gb=4.0,
    ),
    replace(
        _DINOV3,
        name="pocket-dinov3",
        source="builtin:pocket-dinov3",
        vision=_VIT,
        vram_gb=None,
        licence="MIT",
    ),
    _SAM3,
    replace(
        _SAM3,
        name="pocket-sam3",
        source="builtin:pocket-sam3",
        vision=VisionSpec(fit="square", side=112, patch=14),
        vram_gb=None,
        licence="MIT",
    ),
)
