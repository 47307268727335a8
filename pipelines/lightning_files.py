"""Which Lightning LoRA turns which row into one of few steps. Importing it loads no model library."""

import logging

log = logging.getLogger(__name__)

_QWEN = "lightx2v/Qwen-Image-Lightning"

# By row and steps; the row's own choice comes first. Sources: the repositories' model cards.
_FILES: dict[str, dict[int, str]] = {
    "qwen-image": {
        8: f"{_QWEN}/Qwen-Image-Lightning-8steps-V2.0-bf16.safetensors",
        4: f"{_QWEN}/Qwen-Image-Lightning-4steps-V2.0-bf16.safetensors",
    },
    "qwen-image-2512": {
        8: "lightx2v/Qwen-Image-2512-Lightning/Qwen-Image-2512-Lightning-8steps-V1.0-bf16.safetensors",
        4: "lightx2v/Qwen-Image-2512-Lightning/Qwen-Image-2512-Lightning-4steps-V1.0-bf16.safetensors",
    },
    "qwen-image-edit": {
        8: f"{_QWEN}/Qwen-Image-Edit-Lightning-8steps-V1.0-bf16.safetensors",
        4: f"{_QWEN}/Qwen-Image-Edit-Lightning-4steps-V1.0-bf16.safetensors",
    },
    "qwen-image-edit-2509": {
        8: f"{_QWEN}/Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning-8steps-V1.0-bf16.safetensors",
        4: f"{_QWEN}/Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning-4steps-V1.0-bf16.safetensors",
    },
    "qwen-image-edit-2511": {
        8: "lightx2v/Qwen-Image-Edit-2511-Lightning/"
        "Qwen-Image-Edit-2511-Lightning-8steps-V1.0-bf16.safetensors",
        4: "lightx2v/Qwen-Image-Edit-2511-Lightning/"
        "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors",
    },
    "firered-image-edit-1.0": {
        8: "FireRedTeam/FireRed-Image-Edit-1.0-Lightning/"
        "FireRed-Image-Edit-1.0-Lightning-8steps-v1.0.safetensors",
    },
    "firered-image-edit-1.1": {
        8: "FireRedTeam/FireRed-Image-Edit-1.1-ComfyUI/"
        "FireRed-Image-Edit-1.0-Lightning-8steps-v1.1.safetensors",
    },
    "pocket-edit": {4: "builtin:lightning-4steps.safetensors"},
}


def lightning_steps(row: str, wanted: int | None) -> int | None:
    """The steps of the LoRA that ``row`` would run with; None when it has none of ``wanted``."""
    files = _FILES.get(row, {})
    if wanted is None:
        return next(iter(files), None)
    if wanted in files:
        return wanted
    if files:
        known = " or ".join(str(steps) for steps in sorted(files))
        log.warning("%s has no Lightning LoRA of %d steps and runs without; set %s", row, wanted, known)
    return None


def lightning_source(row: str, steps: int | None) -> str | None:
    """Where the file is, in the words of ``lora_files.find``; None when there is none."""
    return None if steps is None else _FILES.get(row, {}).get(steps)
