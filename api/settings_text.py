"""How a picture was made, in the words that AUTOMATIC1111's web UI writes into its PNGs and reads back.

Source: ``create_infotext`` of its ``modules/processing.py`` and ``quote`` of ``modules/infotext_utils.py``.
"""

import json
from typing import Final

from core.request import InferenceRequest
from core.result import InferenceResult

KEYWORD: Final = "parameters"
SAMPLER: Final = "Euler"  # of every model here, also where the checkpoint calls it flow matching


def settings_text(request: InferenceRequest, result: InferenceResult) -> dict[str, str]:
    """By the keyword under which tools look for it."""
    return {KEYWORD: infotext(request, result)}


def infotext(request: InferenceRequest, result: InferenceResult) -> str:
    """Prompt, negative prompt and one line of settings."""
    loras = ", ".join(f"{name}: {scale:g}" for name, scale in request.adapters)
    settings: dict[str, object] = {
        "Steps": result.steps,
        "Sampler": SAMPLER,
        "CFG scale": f"{request.cfg:g}",
        "Seed": result.seed,
        "Size": "{}x{}".format(*request.size),
        "Model": result.model,
        "Denoising strength": None if request.strength is None else f"{request.strength:g}",
        "Lora": loras or None,
    }
    told = (f"{name}: {_quoted(str(value))}" for name, value in settings.items() if value is not None)
    lines = [request.prompt]
    if (request.negative_prompt or "").strip():
        lines.append(f"Negative prompt: {request.negative_prompt}")
    return "\n".join((*lines, ", ".join(told)))


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",\n:") else value
