"""Torch's failures in the house's words; the mux acts on the difference."""

import pytest
import torch

from core.errors import DeviceLost, OutOfDeviceMemory
from pipelines.device import device_errors, weigh
from pipelines.options import Weights


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_exhausted_memory_is_told_apart(error: RuntimeError) -> None:
    """It alone is answered by running fewer rows."""
    with pytest.raises(OutOfDeviceMemory), device_errors():
        raise error


def test_exhausted_memory_of_the_cpu_too() -> None:
    """The real error of the real allocator, so that its words are not guessed."""
    with pytest.raises(OutOfDeviceMemory), device_errors():
        torch.empty(2**50)


def test_a_failed_allocation_lets_go_of_what_the_call_held() -> None:
    """Otherwise the retry with half the rows meets the memory of the first try."""

    def forward() -> None:
        activations = torch.zeros(10)
        raise torch.OutOfMemoryError(f"out of memory beside {len(activations)}")

    with pytest.raises(OutOfDeviceMemory) as caught, device_errors():
        forward()
    cause = caught.value.__cause__
    assert cause is not None
    trace = cause.__traceback__
    while trace is not None and trace.tb_frame.f_code is not forward.__code__:
        trace = trace.tb_next
    assert trace is not None
    assert "activations" not in trace.tb_frame.f_locals


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
)
def test_a_broken_context_is_the_end_of_the_process(error: RuntimeError) -> None:
    """Every later call would fail as well, so no caller is served by carrying on."""
    with pytest.raises(DeviceLost), device_errors():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"),
        torch.AcceleratorError("CUDA error: invalid configuration argument"),
        ValueError("rows differ"),
    ],
)
def test_other_faults_pass_unchanged(error: Exception) -> None:
    """One strange request must not restart the worker."""
    with pytest.raises(type(error)) as caught, device_errors():
        raise error
    assert caught.value is error


def test_the_formats_of_a_models_weights_are_named_by_how_many_there_are() -> None:
    """Not by their bytes: a model that runs in 8 bits holds few numbers in four times as many."""

    def model(**counts: int) -> torch.nn.Module:
        holder = torch.nn.Module()
        for name, count in counts.items():
            holder.register_buffer(f"in_{name}", torch.zeros(count, dtype=getattr(torch, name)))
        return holder

    cpu = torch.device("cpu")
    assert weigh(cpu, model(int8=60, float32=40)) == Weights(220, "int8, fp32")
    assert weigh(cpu, model(int8=40, float32=60)) == Weights(280, "fp32, int8")
    assert weigh(cpu, model(uint8=30), model(bfloat16=40)) == Weights(110, "4bit, bf16")
    assert weigh(cpu, model(float16=95, float32=5)) == Weights(210, "fp16")
    assert weigh(cpu, model()) == Weights()
