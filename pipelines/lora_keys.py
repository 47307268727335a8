"""The key layouts in which LoRAs are published, read as one. Knows no model.

lightx2v and kohya (``lora_down``/``lora_up`` with ``alpha``), diffusers and peft (``lora_A``/``lora_B``,
with or without an adapter's name), ComfyUI (``diffusion_model.``), each with dotted or flattened names.
A key that is not understood is refused: what is skipped in silence is a picture of another model.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Part = Literal["denoiser", "text_encoder", "text_encoder_2"]
MAX_RANK = 1024

# Prefixes, the first that fits; what has none is the denoiser's. Sources: diffusers'
# ``lora_conversion_utils.py`` and ``lora_pipeline.py``, kohya's ``networks/lora.py``.
_PREFIXES: tuple[tuple[str, Part, bool], ...] = (
    ("model.diffusion_model.", "denoiser", False),
    ("diffusion_model.", "denoiser", False),
    ("transformer.", "denoiser", False),
    ("unet.", "denoiser", False),
    ("text_encoder_2.", "text_encoder_2", False),
    ("text_encoder.", "text_encoder", False),
    ("lora_unet_", "denoiser", True),
    ("lora_te1_", "text_encoder", True),
    ("lora_te2_", "text_encoder_2", True),
    ("lora_te_", "text_encoder", True),
)
_SIDE = re.compile(
    r"\.(?:lora_(?P<letter>[AB])(?:\.\w+)?|lora(?:_linear_layer)?[._](?P<word>down|up))\.weight$"
)
_OTHER_KINDS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "LoCon with a middle factor",
    "lora_embedding": "a LoRA of embeddings",
    ".diff": "a LoRA with whole weights beside it",
    ".bias": "a LoRA with biases",
    "_lora.": "in diffusers' first layout",
}
_FAMILIES = (
    ("Flux", ("single_transformer_blocks", "double_blocks", "single_blocks")),
    ("Stable Diffusion", ("down_blocks", "up_blocks", "input_blocks", "output_blocks", "mid_block")),
    ("Qwen-Image", ("img_mlp", "txt_mlp", "img_mod", "txt_mod", "add_q_proj", "transformer_blocks")),
    ("Wan", ("self_attn", "cross_attn")),
)


class BadLora(Exception):
    """A file that must not be applied; ``str`` is a sentence about it, and names no path and no key."""


@dataclass(frozen=True, slots=True)
class Tensor:
    key: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """One module that the file changes by ``up @ down * scale``.

    module: its name in the file without prefix, with underscores for dots when ``flattened``.
    alpha: key of the scalar whose quotient by the rank is the scale; None where ``scale`` says it.
    """

    part: Part
    module: str
    flattened: bool
    down: Tensor
    up: Tensor
    alpha: str | None
    scale: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def layers_of(tensors: Mapping[str, Tensor], metadata: Any) -> tuple[Layer, ...]:
    """Every module that the tensors speak of, by name.

    metadata: the header's; diffusers keeps there what peft's configuration says of alpha.
    Raises ``BadLora``.
    """
    found: dict[tuple[Part, str, bool], dict[str, Tensor]] = {}
    for tensor in tensors.values():
        module, side = _split(tensor.key)
        sides = found.setdefault(_place(module), {})
        if side in sides:
            raise BadLora("it changes one layer twice, under two names")
        sides[side] = tensor
    if not found:
        raise BadLora("it holds no layer")
    peft = _peft_settings(metadata)
    return tuple(
        _layer(part, module, flattened, sides, peft)
        for (part, module, flattened), sides in sorted(found.items())
    )


def family_of(layers: tuple[Layer, ...]) -> str:
    """Which models it was made for, by the names of its layers; for a sentence, not for a decision."""
    names = " ".join(layer.module for layer in layers if layer.part == "denoiser")
    if not names:
        return "Stable Diffusion"  # of the families here and beside, the one whose texts are trained alone
    return next((family for family, signs in _FAMILIES if any(s in names for s in signs)), "other")


def _split(key: str) -> tuple[str, str]:
    if key.endswith(".alpha"):
        return key.removesuffix(".alpha"), "alpha"
    match = _SIDE.search(key)
    if match is None:
        kind = next((kind for sign, kind in _OTHER_KINDS.items() if sign in key), "of an unknown layout")
        raise BadLora(f"it is {kind}, which is not understood here")
    down = match["letter"] == "A" or match["word"] == "down"
    return key[: match.start()], "down" if down else "up"


def _place(module: str) -> tuple[Part, str, bool]:
    module = module.removeprefix("base_model.model.")
    for prefix, part, flattened in _PREFIXES:
        if module.startswith(prefix):
            return part, module.removeprefix(prefix), flattened
    return "denoiser", module, False


def _layer(part: Part, module: str, flattened: bool, sides: Mapping[str, Tensor], peft: Any) -> Layer:
    if "down" not in sides or "up" not in sides:
        raise BadLora("a layer of it has only one of its two factors")
    down, up = sides["down"], sides["up"]
    rank = down.shape[0] if down.shape else 0
    if not 1 <= rank <= MAX_RANK:
        raise BadLora(f"a rank of {rank} is outside 1 to {MAX_RANK}")
    if len(down.shape) not in (2, 4) or len(up.shape) != len(down.shape) or up.shape[1] != rank:
        raise BadLora("the two factors of a layer do not fit each other")
    if len(up.shape) == 4 and up.shape[2:] != (1, 1):
        raise BadLora("the two factors of a layer do not fit each other")
    alpha = sides.get("alpha")
    if alpha is not None and alpha.shape not in ((), (1,)):
        raise BadLora("an alpha of it is no single number")
    scale = 1.0 if alpha is not None else _peft_scale(peft, part, module, rank)
    return Layer(part, module, flattened, down, up, None if alpha is None else alpha.key, scale)


def _peft_settings(metadata: Any) -> dict[str, Any]:
    """Source: ``LORA_ADAPTER_METADATA_KEY`` of diffusers' ``lora_base.py``."""
    try:
        settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except (AttributeError, TypeError, ValueError, RecursionError):
        raise BadLora("its metadata are not text by text") from None
    if not isinstance(settings, dict):
        raise BadLora("its metadata are not text by text")
    return settings


def _peft_scale(settings: Mapping[str, Any], part: Part, module: str, rank: int) -> float:
    """alpha by rank as peft's configuration says it, 1 where there is none, as diffusers reads such files."""
    prefixes = ("transformer", "unet") if part == "denoiser" else (part,)
    own = {
        key.removeprefix(f"{prefix}."): value
        for prefix in prefixes
        for key, value in settings.items()
        if key.startswith(f"{prefix}.")
    }
    if own.get("use_dora"):
        raise BadLora("it is DoRA, which is not understood here")
    patterns = own.get("alpha_pattern") or {}
    alpha = own.get("lora_alpha", rank)
    if isinstance(patterns, dict):
        names = {name.removeprefix("^"): value for name, value in patterns.items()}
        alpha = next((v for n, v in names.items() if module == n or module.endswith(f".{n}")), alpha)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise BadLora("an alpha of its metadata is no number")
    return float(alpha) / (rank**0.5 if own.get("use_rslora") else rank)
