"""The attention that an operator asks for by name, tried before it is relied on."""

from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.modeling_utils import ModelMixin

from pipelines.precision import refused

# Those of the model hub are programs, fetched and run: nothing of the hub is ever executed here.
NAMES = tuple(sorted(name.value for name in AttentionBackendName if not name.value.endswith("_hub")))


class _Bare(ModelMixin):  # type: ignore[misc]
    """A model without layers: what diffusers asks of a backend, it asks when a model is told its name."""


def try_attention(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Run diffusers' backend ``name``, before any weights are read for it.

    Prompts of unequal length share a forward by a mask, which many backends refuse, and only when one is
    given: so each is run once here, with a mask and without.
    Raises ``CapacityError`` ``not_ready`` for an unknown name and for one that does not work here.
    """
    if name not in NAMES:
        raise refused(f"ATTENTION_BACKEND is none of diffusers' local ones: {', '.join(NAMES)}; choose one")
    one = torch.zeros((2, 16, 2, 64), device=device, dtype=dtype)
    mask = torch.ones((2, 1, 1, 16), device=device, dtype=torch.bool)
    try:
        _Bare().set_attention_backend(name)
        for given in (None, mask):
            dispatch_attention_fn(one, one, one, attn_mask=given, backend=AttentionBackendName(name))
    except (ImportError, RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        _Bare().set_attention_backend("native")
        raise refused(
            f"ATTENTION_BACKEND={name} does not work here ({type(error).__name__}): it needs its package, a "
            "card that it supports, and to take a mask; unset it or choose another, such as native"
        ) from error


def set_attention(model: Any, name: str) -> None:
    """Make ``model`` use a backend that was tried. Raises ``CapacityError`` ``not_ready`` if it would not."""
    if not any(hasattr(getattr(part, "processor", None), "_attention_backend") for part in model.modules()):
        raise refused("ATTENTION_BACKEND changes nothing in this model; unset it")
    model.set_attention_backend(name)
