"""The device a model runs on, and its failures in the house's words."""

import itertools
import os
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from core.errors import DeviceLost, OutOfDeviceMemory
from pipelines.options import Weights

# Exhausted memory that torch reports under other names: a library's workspace and the CPU allocator.
# Sources: torch's CUDABlas.cpp, cudnn/Exceptions.h and alloc_cpu.cpp.
_OUT_OF_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED", "can't allocate memory")
# A CUDA context does not recover from an error, unless a call was refused before it reached the device.
_DEVICE_ERRORS = ("CUDA error", "STATUS_EXECUTION_FAILED", "STATUS_INTERNAL_ERROR")
_REFUSED_CALLS = ("invalid argument", "invalid configuration", "STATUS_NOT_SUPPORTED", "STATUS_INVALID_VALUE")

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # cgroup v2; absent outside a container
WORTH_NAMING = 0.1  # part of a model's weights that are in one format
_PRECISIONS = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int8: "int8",
    torch.uint8: "4bit",  # bitsandbytes packs two weights into each
    torch.float8_e4m3fn: "fp8",
}


def pick_device() -> torch.device:
    """The GPU where there is one.

    On a CPU one thread is left to torch: for models small enough to run there more gain little, and
    where cores are shared they wait for each other, up to forty times as long.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(1)
    return torch.device("cpu")


def memory_bytes(device: torch.device) -> int:
    """Of the device in all; of the host what its container may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(host, int(_CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return host


def weigh(device: torch.device, *models: torch.nn.Module) -> Weights:
    """What the parameters and buffers of ``models`` take on ``device``; parts elsewhere count nothing."""
    nbytes = 0
    numbers: Counter[torch.dtype] = Counter()
    seen: set[int] = set()
    for model in models:
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            for plain in _plain(tensor):
                if plain.device.type == device.type and id(plain) not in seen:
                    seen.add(id(plain))
                    nbytes += plain.nbytes
                    numbers[plain.dtype] += plain.numel() * (2 if plain.dtype == torch.uint8 else 1)
    shown = [dtype for dtype, count in numbers.most_common() if count >= WORTH_NAMING * numbers.total()]
    names = [_PRECISIONS.get(dtype, str(dtype).removeprefix("torch.")) for dtype in shown]
    return Weights(nbytes, ", ".join(names)) if names else Weights()


def _plain(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that hold a quantized one's bytes, its scales included."""
    if hasattr(tensor, "__tensor_flatten__"):  # torchao's
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain(getattr(tensor, name))
        return
    yield tensor
    state = getattr(tensor, "quant_state", None)  # bitsandbytes' 4-bit
    for scales in (getattr(tensor, "SCB", None), getattr(state, "absmax", None)):
        if isinstance(scales, torch.Tensor):
            yield scales


def finish(device: torch.device) -> None:
    """Wait for what was started on a GPU: its errors belong to this call, and so does its time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
