"""Depth Anything 3's any-view networks, by the official package, asked for one view a picture.

The package is optional. A network is built as its own files say, which go by the checkpoint's name: what the
checkpoint says is to be imported is never looked at.
"""

import importlib
from typing import Any

from torch import Tensor, nn

from core.errors import CapacityError
from pipelines.depth_anything_keys import fill
from pipelines.vision_loading import VisionLoader


class AnyView(nn.Module):
    """Depth of pictures [rows, 3, height, width], float32 [rows, height, width]; no sky.

    Pictures are rows, each with one view of its own: views of one row see each other.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, None]:
        return self.network(pixels[:, None])["depth"][:, 0].float(), None


def official(module: str) -> Any:
    """A module of the package's. Raises ``CapacityError`` ``not_ready`` where there is none."""
    try:
        return importlib.import_module(f"depth_anything_3.{module}")
    except ImportError as error:
        raise CapacityError(
            "not_ready",
            f"any-view Depth Anything 3 needs the package depth_anything_3 ({str(error)[:200]}); "
            "pip install --no-deps -r requirements-da3.txt, or choose another model",
            retryable=False,
        ) from error


def load_any_view(loader: VisionLoader) -> AnyView:
    """Without what estimates and encodes cameras, which nobody asks for.

    Raises ``CapacityError`` ``not_ready`` where the checkpoint is not of this architecture.
    """
    weights = {name.removeprefix("model."): value.float() for name, value in loader.tensors().items()}
    building = official("cfg")
    config = building.load_config(official("registry").MODEL_REGISTRY[loader.config["model_name"]])
    network = official("model.da3").DepthAnything3Net(
        building.create_object(config.net), building.create_object(config.head)
    )
    fill(network, weights)
    model = AnyView(network)
    loader.place(model)
    return model
