"""Where a model's weights are while it waits and while it runs. Knows no family.

Families call parts of their models by themselves (``text_encoder.model``, its vision tower), which hooks on
a model's own ``forward`` would miss: what is hooked here are the parts.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import cpu_offload
from torch import nn

from pipelines.precision import Role

HEADROOM = 2 * 2**30  # bytes of the card for activations


class OneAtATime:
    """Has one of its models on the device; calling another's part moves both. The weights cross each time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._present: nn.Module | None = None
        self.moves = 0

    def add(self, model: nn.Module) -> None:
        """``model`` waits on the host from now on."""
        model.to("cpu")

        def bring(part: nn.Module, inputs: Any) -> None:
            self._bring(model)

        for name, part in model.named_modules():
            if name.count(".") < 2:
                part.register_forward_pre_hook(bring)

    def _bring(self, model: nn.Module) -> None:
        if model is self._present:
            return
        # Weights that moved in inference mode could not be replaced by others, as torchao's are by a move.
        with torch.inference_mode(False):
            if self._present is not None:
                self._present.to("cpu")
            model.to(self._device)
        self._present = model
        self.moves += 1


def stream(model: nn.Module, device: torch.device) -> None:
    """``model`` stays on the host, whole; each layer's weights are copied to ``device`` while it runs."""
    cpu_offload(model, execution_device=device)


def parts_on_host(sizes: Mapping[Role, int], free: int) -> frozenset[Role]:
    """The parts that do not fit beside the others, the text encoder first: it runs once a request.

    sizes: bytes of each part as it would lie on the card. free: bytes of the card.
    """
    host: frozenset[Role] = frozenset()
    for role in ("text", "denoiser"):
        if sum(size for part, size in sizes.items() if part not in host) + HEADROOM <= free:
            break
        host |= {role}
    return host
