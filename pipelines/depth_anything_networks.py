"""Depth Anything's networks for one view, on transformers' modules.

Release 3 differs from 2 in how depth is told (an exponential, not a rectified disparity), in a second head
that finds the sky, and in the way positions are interpolated.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers.models.depth_anything.configuration_depth_anything import DepthAnythingConfig
from transformers.models.depth_anything.modeling_depth_anything import DepthAnythingForDepthEstimation
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

from pipelines.depth_anything_keys import architecture, fill, translate
from pipelines.vision_loading import VisionLoader

# Of a patch. Source: interpolate_offset of depth_anything_3's model/dinov2/vision_transformer.py.
_OFFSET = 0.1


class _Embeddings(Dinov2Embeddings):  # type: ignore[misc]
    """Positions scaled by a factor a little above that of the sizes, as DINOv2 was trained."""

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        grid = round((self.position_embeddings.shape[1] - 1) ** 0.5)
        rows, columns = height // self.patch_size, width // self.patch_size
        known: Tensor = self.position_embeddings
        if rows == columns == grid:
            return known
        first, patches = known[:, :1], known[:, 1:]
        scaled = interpolate(
            patches.float().reshape(1, grid, grid, -1).permute(0, 3, 1, 2),
            scale_factor=((rows + _OFFSET) / grid, (columns + _OFFSET) / grid),
            mode="bicubic",
        )
        return torch.cat([first, scaled.flatten(2).transpose(1, 2).to(first.dtype)], dim=1)


class DepthAnything2(DepthAnythingForDepthEstimation):  # type: ignore[misc]
    """Depth or disparity of pictures [rows, 3, height, width], float32 [rows, height, width]; no sky."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, None]:
        """The head is computed in fp32 whatever the autocast: what it gives is the answer."""
        maps = self.backbone(pixels).feature_maps
        grid = [side // self.config.patch_size for side in pixels.shape[-2:]]
        with torch.autocast(pixels.device.type, enabled=False):
            return self.head(self.neck([one.float() for one in maps], *grid), *grid), None


class DepthAnything3(DepthAnythingForDepthEstimation):  # type: ignore[misc]
    """Depth and sky of pictures [rows, 3, height, width], both float32 [rows, height, width].

    sky: 0 or more; the more, the likelier.
    """

    def __init__(self, config: DepthAnythingConfig) -> None:
        super().__init__(config)
        self.backbone.embeddings.__class__ = _Embeddings
        # nn.LayerNorm's own, where the blocks have 1e-6.
        self.backbone.layernorm.eps = 1e-5
        del self.neck.fusion_stage.layers[0].residual_layer1  # the coarsest level has nothing to add
        inner, hidden = config.fusion_hidden_size // 2, config.head_hidden_size
        self.head.sky = nn.Sequential(
            nn.Conv2d(inner, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, 1, 1)
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The heads are computed in fp32 whatever the autocast, as upstream does: depth is an exponential."""
        maps = self.backbone(pixels).feature_maps
        size = pixels.shape[-2:]
        with torch.autocast(pixels.device.type, enabled=False):
            fused = self.neck(
                [one.float() for one in maps], *(side // self.config.patch_size for side in size)
            )
            fine = interpolate(self.head.conv1(fused[-1]), size, mode="bilinear", align_corners=True)
            depth = self.head.conv3(torch.relu(self.head.conv2(fine))).exp()
            sky = torch.relu(self.head.sky(fine))
        return depth[:, 0], sky[:, 0]


def load_mono(loader: VisionLoader) -> DepthAnything3:
    """Raises ``CapacityError`` ``not_ready`` where the checkpoint is not of this architecture."""
    weights = translate(loader.tensors())
    with torch.device("meta"):
        model = DepthAnything3(architecture(loader.config, weights))
    fill(model, weights)
    loader.place(model)
    return model


def fill_sky(depth: Tensor, sky: Tensor) -> Tensor:
    """One picture's depth [height, width] with its sky as far away as nearly all else is near.

    Source: _process_mono_sky_estimation of depth_anything_3's model/da3.py, which takes the quantile over a
    whole batch and from 100,000 pixels drawn at random where there are more; here it is each picture's own
    and of all its pixels, so that an answer depends on nothing but the picture.
    """
    ground = sky < 0.3
    if min(int(ground.sum()), int((~ground).sum())) <= 10:
        return depth
    return torch.where(ground, depth, torch.quantile(depth[ground], 0.99))
