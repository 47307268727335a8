"""Depth Anything: how far away each pixel is, by releases 2 and 3."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from core.request import Image, InferenceRequest, Size
from core.spec import PipelineSpec
from core.vision import Depth, DepthMap
from pipelines.depth_anything_networks import DepthAnything2, fill_sky, load_mono
from pipelines.depth_anything_pixels import preprocess_v2, preprocess_v3
from pipelines.depth_anything_views import load_any_view, official
from pipelines.looking import OneForward, finite, floats
from pipelines.options import ModelOptions, Report
from pipelines.vision_loading import VisionLoader

_MONO, _METRIC = ("da3mono-large", "pocket-depth"), ("da3metric-large",)
_VIEWS = ("da3-small", "da3-base", "da3-large")
# What a metric network gives is metres at this focal length. Source: README of Depth-Anything-3.
_FOCAL = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """What tells one kind of checkpoint from another.

    resample: how a map is brought to the picture's size. unit: of what the network gives; ``canonical`` is
    metres once the camera's focal length is known.
    """

    read: Callable[[Image, Size], Tensor]
    kind: Literal["depth", "disparity"] = "depth"
    unit: Literal["relative", "metre", "canonical"] = "relative"
    resample: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass(frozen=True, slots=True)
class Raw:
    """Of one picture, [height, width] at the size at which it entered. sky: None from networks without."""

    depth: Tensor = field(repr=False)
    sky: Tensor | None = field(default=None, repr=False)


def load_v2(spec: PipelineSpec, options: ModelOptions, report: Report) -> "DepthAnything":
    """Release 2: disparity, or metres of a checkpoint that was trained further on them."""
    loader = VisionLoader(spec, options, report, model_type=("depth_anything",))
    model = loader.model(DepthAnything2)
    metric = model.config.depth_estimation_type == "metric"
    release = Release(
        read=preprocess_v2,
        kind="depth" if metric else "disparity",
        unit="metre" if metric else "relative",
        resample="bicubic",  # as post_process_depth_estimation of transformers does
    )
    return DepthAnything(loader, model, release)


def load_mono_v3(spec: PipelineSpec, options: ModelOptions, report: Report) -> "DepthAnything":
    """Release 3 for one view: relative depth, or metres."""
    loader = VisionLoader(spec, options, report, model_type=(*_MONO, *_METRIC))
    unit: Literal["canonical", "relative"] = (
        "canonical" if loader.config["model_name"] in _METRIC else "relative"
    )
    return DepthAnything(loader, load_mono(loader), Release(read=preprocess_v3, unit=unit))


def load_views_v3(spec: PipelineSpec, options: ModelOptions, report: Report) -> "DepthAnything":
    """Release 3 for any number of views, of which a picture is one: relative depth."""
    official("model.da3")  # before gigabytes are fetched in vain
    loader = VisionLoader(spec, options, report, model_type=_VIEWS)
    return DepthAnything(loader, load_any_view(loader), Release(read=preprocess_v3))


class DepthAnything(OneForward[Tensor, Raw]):
    """network: gives depth, and sky or None, each [rows, height, width], of pictures of one size."""

    def __init__(self, loader: VisionLoader, network: nn.Module, release: Release) -> None:
        super().__init__(loader, network)
        self._network = network
        self._release = release

    def read(self, request: InferenceRequest) -> Tensor:
        return self._release.read(request.images[0], request.canvas).to(self.device)

    def forward(self, requests: Sequence[InferenceRequest], inputs: Sequence[Tensor]) -> list[Raw]:
        depth, sky = self._network(torch.stack(list(inputs)))
        return [Raw(depth[row], None if sky is None else sky[row]) for row in range(len(inputs))]

    def tell(self, request: InferenceRequest, raw: Raw) -> DepthMap:
        depth = finite(raw.depth, request)
        if raw.sky is not None:
            depth = fill_sky(depth, finite(raw.sky, request))
        factor, unit = self._scale(request)
        width, height = request.size
        whole = interpolate(
            (depth * factor)[None, None], (height, width), mode=self._release.resample, align_corners=False
        )
        return DepthMap(size=request.size, values=floats(whole[0, 0]), kind=self._release.kind, unit=unit)

    def _scale(self, request: InferenceRequest) -> tuple[float, Literal["metre", "relative"]]:
        """Without a focal length a metric network's depth is right up to a factor, upstream as here.

        Source: apply_metric_scaling of depth_anything_3's utils/alignment.py: the mean of the focal lengths
        along both axes, in pixels of the picture as it entered.
        """
        if self._release.unit != "canonical":
            return 1.0, self._release.unit
        assert isinstance(request.ask, Depth)
        if request.ask.focal is None:
            return 1.0, "relative"
        stretch = request.canvas[0] / request.size[0] + request.canvas[1] / request.size[1]
        return request.ask.focal * stretch / 2 / _FOCAL, "metre"
