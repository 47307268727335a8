"""The device a model runs on, and its failures in the house's words."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from core.errors import DeviceLost, OutOfDeviceMemory

# Exhausted memory that torch reports under other names: a library's workspace and the CPU allocator.
# Sources: torch's CUDABlas.cpp, cudnn/Exceptions.h and alloc_cpu.cpp.
_OUT_OF_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED", "can't allocate memory")
# A CUDA context does not recover from an error, unless a call was refused before it reached the device.
_DEVICE_ERRORS = ("CUDA error", "STATUS_EXECUTION_FAILED", "STATUS_INTERNAL_ERROR")
_REFUSED_CALLS = ("invalid argument", "invalid configuration", "STATUS_NOT_SUPPORTED", "STATUS_INVALID_VALUE")


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def device_errors() -> Iterator[None]:
    """Turns torch's failures into ``OutOfDeviceMemory`` and ``DeviceLost``; others pass unchanged.

    After an exhausted allocation the failed call's tensors are let go before the error leaves, so that a
    smaller retry finds the memory free.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or _says(error, _OUT_OF_MEMORY):
            traceback.clear_frames(error.__traceback__)
            torch.cuda.empty_cache()  # does nothing where CUDA was never used
            raise OutOfDeviceMemory from error
        if _says(error, _DEVICE_ERRORS) and not _says(error, _REFUSED_CALLS):
            raise DeviceLost from error
        raise


def _says(error: Exception, signs: tuple[str, ...]) -> bool:
    return any(sign in str(error) for sign in signs)
