"""``/health`` in the words of the servers that clients of this one knew before. Knows no HTTP."""

from collections.abc import Mapping
from typing import Any, Final

from core.service import Health

_GB: Final = 1e9
_MB: Final = 2**20

# How each of them says "ready" and "loading". Those that loaded a model at its first use said the same
# for both; what is wrong or about to end never sounds well in any of them.
_WORDS: Final[Mapping[str, tuple[str, str, str]]] = {
    "worker": ("ready", "loading", ""),
    "firered": ("ok", "ok", ""),
    "sdxl": ("ok", "ok", ""),
    "vision": ("healthy", "healthy", "unhealthy"),
    "gateway": ("healthy", "degraded", "unhealthy"),
}


def body_of(profile: str, health: Health, memory: Mapping[str, int]) -> dict[str, Any]:
    """Every key that any of them had; only ``status`` differs. ``memory``: bytes by kind."""
    allocated, free = memory.get("allocated"), memory.get("free")
    return {
        "status": _word(profile, health),
        "state": health.state,
        "gpu_available": health.gpu_available,
        "model": health.model,
        "detail": health.detail,
        "lightning_enabled": health.lightning_enabled,
        "jobs": health.counts,
        "caches": health.caches,
        "loading": health.loading,
        "models": health.models,
        "model_loaded": health.model in health.loaded,
        "loaded_models": list(health.loaded),
        "gpu_memory_mb": health.device.get("allocated_mb")
        if allocated is None
        else round(allocated / _MB, 1),
        "available_memory_gb": None if free is None else round(free / _GB, 2),
        "gateway": "running",
        "text2image_server": {
            "status": _word("gateway", health),
            "model_loaded": health.model in health.loaded,
            "cuda_available": health.gpu_available,
            "current_queue_size": health.counts.get("queued", 0),
            "active_generations": health.counts.get("running", 0),
        },
    }


def _word(profile: str, health: Health) -> str:
    ready, loading, bad = _WORDS[profile]
    if health.state == "ready":
        return ready
    return loading if health.state == "loading" else bad or health.state
