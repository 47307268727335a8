"""What memory there is, and giving it back. Importing it imports no torch, nor does asking for figures."""

import contextlib
import ctypes
import gc
import sys


def cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


def device_memory() -> int:
    from pipelines.device import memory_bytes, pick_device

    return memory_bytes(pick_device())


def cuda_facts() -> dict[str, str | float]:
    """Of the device that is in use, as ``Health.device`` holds them; empty when it is lost."""
    import torch

    try:
        name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    except RuntimeError:  # torch's CUDA errors; whoever asks for health must get an answer
        return {}
    return {
        "name": name,
        "compute_capability": f"{major}.{minor}",
        "allocated_mb": round(torch.cuda.memory_allocated() / 2**20, 1),
        "reserved_mb": round(torch.cuda.memory_reserved() / 2**20, 1),
    }


def free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        # glibc keeps what was freed below its top; after a model of gigabytes that is most of it.
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def memory_figures() -> dict[str, int]:
    """Bytes by kind; nothing before the device is in use."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {
        "allocated": torch.cuda.memory_allocated(),
        "reserved": torch.cuda.memory_reserved(),
        "free": free,
        "total": total,
    }
