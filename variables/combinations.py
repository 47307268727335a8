"""Settings of models that cannot be had together, whatever the card.

What depends on the card or the model is refused when the model is loaded.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from variables.model import ModelSettings


def refused_combinations(chosen: "ModelSettings") -> list[tuple[bool, str]]:
    """What cannot be had together, whatever the card: (whether it was asked for, why not and what to do)."""
    eight, four = chosen.precision_mode == "8bit", chosen.precision_mode == "4bit"
    offloaded = chosen.offload != "none"
    return [
        (
            chosen.torch_compile and offloaded,
            "TORCH_COMPILE=1 with OFFLOAD: compiled blocks cannot follow weights that move; unset one",
        ),
        (
            chosen.torch_compile and chosen.int8_cpu_offload,
            "TORCH_COMPILE=1 with INT8_CPU_OFFLOAD=1: its blocks cannot follow weights that move; unset one",
        ),
        (
            chosen.torch_compile and eight and chosen.eight_bit_backend == "fp8-layerwise",
            "TORCH_COMPILE=1 with EIGHT_BIT_BACKEND=fp8-layerwise: its casts cannot be compiled; "
            "set EIGHT_BIT_BACKEND=auto",
        ),
        (
            eight and chosen.offload == "sequential",
            "PRECISION_MODE=8bit with OFFLOAD=sequential: quantized weights cannot be taken apart; "
            "set OFFLOAD=model, or PRECISION_MODE=bf16",
        ),
        (
            four and offloaded,
            "PRECISION_MODE=4bit with OFFLOAD: bitsandbytes' weights stay where they were quantized; "
            "unset OFFLOAD, or set PRECISION_MODE=8bit with OFFLOAD=model",
        ),
        (
            eight and chosen.eight_bit_backend == "bitsandbytes" and chosen.offload == "model",
            "EIGHT_BIT_BACKEND=bitsandbytes with OFFLOAD=model: its weights stay where they were quantized; "
            "set EIGHT_BIT_BACKEND=auto, or unset OFFLOAD",
        ),
        (
            chosen.int8_cpu_offload and not eight,
            "INT8_CPU_OFFLOAD=1 is for PRECISION_MODE=8bit; set OFFLOAD=model instead",
        ),
        (
            chosen.int8_cpu_offload and offloaded,
            "INT8_CPU_OFFLOAD=1 with OFFLOAD: both say where weights wait; unset one",
        ),
    ]
