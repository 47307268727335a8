"""The device a model runs on, and its failures in the house's words."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from core.errors import DeviceLost, OutOfDeviceMemory

# Exhausted memory that torch reports under other names: a BLAS handle that cannot get its workspace, and
# the CPU allocator. Sources: at::cuda::blas (CUDABlas.cpp), c10/core/impl/alloc_cpu.cpp.
_OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")
_LOST = ("CUDA error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "cuDNN error", "device-side assert")


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
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in _OUT_OF_MEMORY):
            traceback.clear_frames(error.__traceback__)
            torch.cuda.empty_cache()  # does nothing where CUDA was never used
            raise OutOfDeviceMemory from error
        if isinstance(error, torch.AcceleratorError) or any(sign in text for sign in _LOST):
            # A CUDA context does not recover from these; every later call would fail too.
            raise DeviceLost from error
        raise
