"""Depth Anything 3's any-view networks, by the official package, asked for one view a picture.

The package is optional; what a checkpoint's configuration names to be imported is never looked at.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from core.errors import CapacityError
from pipelines.vision_loading import VisionLoader

_PACKAGE = "depth_anything_3.model"
_NET = ("name", "out_layers", "alt_start", "qknorm_start", "rope_start", "cat_token")
_HEAD = ("dim_in", "output_dim", "features", "out_channels")
# The camera is not asked for, neither what is known of it nor a guess.
_PARTS = ("backbone.", "head.")


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
    """A module of the package's ``model``. Raises ``CapacityError`` ``not_ready`` where there is none."""
    try:
        return importlib.import_module(f"{_PACKAGE}.{module}")
    except ImportError as error:
        raise CapacityError(
            "not_ready",
            f"any-view Depth Anything 3 needs the package depth_anything_3 ({str(error)[:200]}); "
            "pip install --no-deps -r requirements-da3.txt, or choose another model",
            retryable=False,
        ) from error


def load_any_view(loader: VisionLoader) -> AnyView:
    """Raises ``CapacityError`` ``not_ready`` where the checkpoint is not of this architecture."""
    tensors = {name.removeprefix("model."): tensor.float() for name, tensor in loader.tensors().items()}
    try:
        given = loader.config["config"]
        network = official("da3").DepthAnything3Net(
            official("dinov2.dinov2").DinoV2(**_chosen(given["net"], _NET)),
            official("dualdpt").DualDPT(**_chosen(given["head"], _HEAD)),
        )
        used = {name: tensor for name, tensor in tensors.items() if name.startswith(_PARTS)}
        network.load_state_dict(used, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise CapacityError(
            "not_ready",
            "the checkpoint is not of an any-view network of Depth Anything 3 "
            f"({str(error).strip()[:200]}); use one of that model",
            retryable=False,
        ) from error
    model = AnyView(network)
    loader.place(model)
    return model


def _chosen(given: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: given[name] for name in names}
