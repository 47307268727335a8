"""DINOv3: features of a picture and of each of its patches, by a vision transformer or a ConvNeXt."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers.models.dinov3_convnext.modeling_dinov3_convnext import DINOv3ConvNextModel
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel

from core.request import Image, InferenceRequest, Size
from core.spec import PipelineSpec
from core.vision import Features
from pipelines.looking import OneForward, array, finite, floats, normalised
from pipelines.options import ModelOptions, Report
from pipelines.vision_loading import VisionLoader

_MODELS = {"dinov3_vit": DINOv3ViTModel, "dinov3_convnext": DINOv3ConvNextModel}
_CPU = torch.device("cpu")


def load(spec: PipelineSpec, options: ModelOptions, report: Report) -> "DINOv3":
    loader = VisionLoader(spec, options, report, model_type=tuple(_MODELS))
    return DINOv3(loader, loader.model(_MODELS[loader.config["model_type"]]))


class DINOv3(OneForward[Tensor, Tensor]):
    def __init__(self, loader: VisionLoader, model: DINOv3ViTModel | DINOv3ConvNextModel) -> None:
        super().__init__(loader, model)
        self._model = model

    def read(self, request: InferenceRequest) -> Tensor:
        return preprocess(request.images[0], request.canvas, self.device)

    def forward(self, requests: Sequence[InferenceRequest], inputs: Sequence[Tensor]) -> list[Tensor]:
        tokens = self._model(pixel_values=torch.stack(list(inputs))).last_hidden_state
        return list(tokens.float())

    def tell(self, request: InferenceRequest, raw: Tensor) -> Features:
        """The first token is the class's, or a ConvNeXt's mean: upstream's ``pooler_output`` in both."""
        finite(raw, request)
        width, height = request.canvas
        patch = self._patch
        return Features(
            tokens=floats(raw),
            pooled=floats(raw[0]),
            length=raw.shape[0],
            width=raw.shape[1],
            grid=(width // patch, height // patch),
        )

    @property
    def _patch(self) -> int:
        config = self._model.config
        if config.model_type == "dinov3_vit":
            return int(config.patch_size)
        return int(4 * 2 ** (len(config.depths) - 1))  # a stem of 4 and a halving before each further stage


def preprocess(image: Image, size: Size, device: torch.device = _CPU) -> Tensor:
    """float32 [3, height, width], normalised; made on the device, which gets the picture's bytes.

    Not rounded between resizing and normalising, unlike most: upstream scales first, and to scale the smaller
    of the two comes to the same. Source: DINOv3ViTImageProcessor of transformers.
    """
    pixels = torch.from_numpy(array(image).copy()).to(device).permute(2, 0, 1)[None].float()
    width, height = size
    resized = interpolate(pixels, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return normalised(resized[0] / 255)
