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

_DEPTH = PipelineSpec(
    name="da3mono-large",
    factory="pipelines.depth_anything:load_mono_v3",
    source="depth-anything/DA3MONO-LARGE",
    tasks=frozenset({Task.DEPTH}),
    vision=VisionSpec(fit="longest", side=504, multiple=14, patch=14),
    vram_gb=2.0,
    licence="Apache-2.0",
    needs_gpu=False,
)
# Upstream's processor bounds neither side: a strip would be as long as it likes.
_DEPTH_V2 = replace(
    _DEPTH,
    factory="pipelines.depth_anything:load_v2",
    vision=VisionSpec(fit="either", side=518, longest=4 * 518, multiple=14, patch=14),
    vram_gb=0.3,
)
# As many labels as single words fill the 256 tokens of a caption. Memory is that of weights and one picture.
_GROUNDING = PipelineSpec(
    name="grounding-dino-base",
    factory="pipelines.grounding_dino:load",
    source="IDEA-Research/grounding-dino-base",
    tasks=frozenset({Task.DETECT}),
    vision=VisionSpec(fit="shortest", side=800, longest=1333, patch=16, max_prompts=127),
    vram_gb=3.0,
    licence="Apache-2.0",
    needs_gpu=False,
)

VISION: tuple[PipelineSpec, ...] = (
    _SAM3,
    replace(
        _SAM3,
        name="pocket-sam3",
        source="builtin:pocket-sam3",
        vision=VisionSpec(fit="square", side=112, patch=14),
        vram_gb=None,
        licence="MIT",
    ),
    replace(_GROUNDING, aliases=("grounding-dino", "grounding_dino")),
    replace(
        _GROUNDING,
        name="grounding-dino-tiny",
        source="IDEA-Research/grounding-dino-tiny",
        vram_gb=2.4,
    ),
    replace(
        _GROUNDING,
        name="mm-grounding-dino-tiny",
        source="openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det",
        vram_gb=2.4,
    ),
    replace(
        _GROUNDING,
        name="pocket-grounding-dino",
        source="builtin:pocket-grounding-dino",
        vision=VisionSpec(fit="shortest", side=128, longest=213, patch=16, max_prompts=127),
        vram_gb=None,
        licence="MIT",
    ),
    # Any number of views; by the package of requirements-da3.txt.
    replace(
        _DEPTH,
        name="da3-base",
        factory="pipelines.depth_anything:load_views_v3",
        source="depth-anything/DA3-BASE",
        aliases=("depth-anything", "depth_anything"),
        vram_gb=0.8,
    ),
    replace(
        _DEPTH,
        name="da3-small",
        factory="pipelines.depth_anything:load_views_v3",
        source="depth-anything/DA3-SMALL",
        vram_gb=0.4,
    ),
    replace(
        _DEPTH,
        name="da3-large",
        factory="pipelines.depth_anything:load_views_v3",
        source="depth-anything/DA3-LARGE",
        licence="CC-BY-NC-4.0",
    ),
    _DEPTH,
    replace(_DEPTH, name="da3metric-large", source="depth-anything/DA3METRIC-LARGE"),
    replace(_DEPTH_V2, name="depth-anything-v2-small", source="depth-anything/Depth-Anything-V2-Small-hf"),
    replace(
        _DEPTH_V2,
        name="depth-anything-v2-metric-indoor-small",
        source="depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf",
    ),
    replace(
        _DEPTH_V2,
        name="depth-anything-v2-metric-outdoor-small",
        source="depth-anything/Depth-Anything-V2-Metric-Outdoor-Small-hf",
    ),
    replace(
        _DEPTH,
        name="pocket-depth",
        source="builtin:pocket-depth",
        vision=VisionSpec(fit="longest", side=252, multiple=14, patch=14),
        vram_gb=None,
        licence="MIT",
    ),
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
)
