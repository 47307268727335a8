"""What an operator of an older server need not say again: the defaults that API_PROFILE brings with it."""

from collections.abc import Mapping
from typing import Any, Final

# By profile and field; a variable that is set wins.
DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "vision": {
        "default_model": "sam3",
        "allowed_models": frozenset({"sam3", "grounding-dino-base", "da3-base", "dinov3-convnext-tiny"}),
        "max_models_cache": 4,
    },
}
