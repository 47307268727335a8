"""What every vision family shares: a row is read, goes through one forward with others, and is told.

Knows no model.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import ExecutionError
from core.request import Image, InferenceRequest
from core.result import InferenceResult
from core.vision import Findings
from pipelines.device import device_errors, finish, weigh
from pipelines.options import Weights
from pipelines.vision_loading import VisionLoader

Inputs = TypeVar("Inputs")
Raw = TypeVar("Raw")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(slots=True)
class LookState(Generic[Inputs, Raw]):
    """raw: what the forward gave for this row, on the device; None before it."""

    request: InferenceRequest
    inputs: Inputs = field(repr=False)
    raw: Raw | None = field(default=None, repr=False)

    @property
    def finished(self) -> bool:
        return self.raw is not None

    @property
    def remaining(self) -> int:
        return 0 if self.finished else 1


class OneForward(ABC, Generic[Inputs, Raw]):
    """A pipeline of one step. A family says how a row is read, computed beside others, and told."""

    lightning_enabled = False

    def __init__(self, loader: VisionLoader, *models: torch.nn.Module) -> None:
        self._loader = loader
        self._models = models
        self.device = loader.device
        self.precision = loader.precision
        self.caches: Mapping[str, dict[str, int]] = {}

    @property
    def weights(self) -> Weights:
        return weigh(self.device, *self._models)

    @abstractmethod
    def read(self, request: InferenceRequest) -> Inputs:
        """What the model takes. Raises ``RequestError`` for what only a tokenizer can tell."""

    @abstractmethod
    def forward(self, requests: Sequence[InferenceRequest], inputs: Sequence[Inputs]) -> list[Raw]:
        """Rows of one ``BatchKey`` through the model together, each row's own part of what comes out."""

    @abstractmethod
    def tell(self, request: InferenceRequest, raw: Raw) -> Findings:
        """What a row's part means, in the caller's pixels and words. Raises what ``finite`` raises."""

    @torch.inference_mode()
    def prepare(self, requests: Sequence[InferenceRequest]) -> list[LookState[Inputs, Raw]]:
        with device_errors():
            return [LookState(request, self.read(request)) for request in requests]

    @torch.inference_mode()
    def step(self, states: Sequence[LookState[Inputs, Raw]]) -> None:
        with device_errors(), self._loader.products():
            raw = self.forward([state.request for state in states], [state.inputs for state in states])
            finish(self.device)
        for state, part in zip(states, raw, strict=True):
            state.raw = part

    @torch.inference_mode()
    def decode(self, states: Sequence[LookState[Inputs, Raw]]) -> list[InferenceResult]:
        return [self._result(state) for state in states]

    def _result(self, state: LookState[Inputs, Raw]) -> InferenceResult:
        assert state.raw is not None  # the mux decodes what is finished
        with device_errors():
            found = self.tell(state.request, state.raw)
        request = state.request
        return InferenceResult(
            id=request.id, output=found, model=request.model, seed=request.seed, steps=request.steps
        )


def array(image: Image) -> NDArray[np.uint8]:
    """[height, width, 3], a view of the picture's own bytes: not to be written to."""
    return np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width, 3)


def normalised(pixels: Tensor) -> Tensor:
    """float32 [3, height, width] of 0 to 1, less ImageNet's mean, in its deviations.

    Source: IMAGENET_DEFAULT_MEAN and _STD of transformers' image_utils.py.
    """
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
    return ((pixels - mean) / std).contiguous()


def finite(values: Tensor, request: InferenceRequest) -> Tensor:
    """``values``. Raises ``ExecutionError`` when one of them is not a finite number."""
    if values.numel() and not math.isfinite(float(values.abs().max())):
        raise ExecutionError("pipeline_error", f"{request.model} gave values that are not finite numbers")
    return values


def floats(values: Tensor) -> bytes:
    """float32, little-endian, row by row."""
    return values.detach().float().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes()
