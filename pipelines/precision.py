"""What the operator's precision comes to on one device: number formats, schemes, and why. Torch-free.

Nothing is measured here: the choice follows what a card's generation multiplies in hardware, and the
published times of the schemes on Flux-dev (bf16 12 s, fp8 layerwise casting 13 s, torchao weight-only
15 s, bitsandbytes int8 27 s; huggingface/diffusers, "Exploring Quantization Backends").
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from core.errors import CapacityError
from pipelines.options import Precision, Tuning

Role = Literal["denoiser", "text", "vae"]
Format = Literal["float32", "bfloat16", "float16"]
Scheme = Literal[
    "bitsandbytes-int8",
    "bitsandbytes-nf4",
    "torchao-int8",
    "torchao-int8-weights",
    "torchao-fp8",
    "torchao-fp8-weights",
    "fp8-layerwise",
]

_ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("transformer", "unet", "denoiser"), "denoiser"),
    "vae": "vae",
}

TURING, AMPERE, ADA = (7, 5), (8, 0), (8, 9)  # the first with int8, bf16 and fp8 matrix units

_QUANTIZED: Mapping[str, frozenset[Role]] = {
    "all": frozenset({"denoiser", "text"}),
    "text": frozenset({"text"}),
    "transformer": frozenset({"denoiser"}),
}
_LIBRARY = {"bitsandbytes": "bitsandbytes", "torchao-int8": "torchao", "torchao-fp8": "torchao"}
_NAMES = {
    "bitsandbytes-int8": "bitsandbytes: int8 weights, activations rounded row by row",
    "bitsandbytes-nf4": "bitsandbytes: nf4 weights, products in full",
    "torchao-int8": "torchao: int8 weights and activations, a scale for each row",
    "torchao-int8-weights": "torchao: int8 weights, products in full",
    "torchao-fp8": "torchao: fp8 weights and activations, a scale for each row",
    "torchao-fp8-weights": "torchao: fp8 weights, products in full",
    "fp8-layerwise": "fp8 weights, cast back layer by layer",
}


def role_of(part: str) -> Role:
    """Of a checkpoint's part, by the name of its folder."""
    return _ROLES.get(part, "text")


@dataclass(frozen=True, slots=True)
class Device:
    """capability: (major, minor) of a CUDA card, None elsewhere. libraries: of torchao and bitsandbytes."""

    type: str
    capability: tuple[int, int] | None = None
    libraries: frozenset[str] = frozenset({"torchao", "bitsandbytes"})

    @property
    def name(self) -> str:
        return "the CPU" if self.capability is None else "sm{}{}".format(*self.capability)

    def multiplies(self, generation: tuple[int, int]) -> bool:
        return self.capability is not None and self.capability >= generation


@dataclass(frozen=True, slots=True)
class Plan:
    """compute: format of products and of everything that is not quantized. sentence: for a person."""

    compute: Format
    schemes: Mapping[Role, Scheme] = field(default_factory=dict)
    sentence: str = ""

    def format_of(self, role: Role, *, force_upcast: bool = False) -> Format:
        """force_upcast: what the autoencoder's configuration says: it overflows in fp16 (SDXL's does)."""
        return "float32" if role == "vae" and force_upcast and self.compute == "float16" else self.compute


def choose(
    device: Device, precision: Precision, tuning: Tuning, *, loras: bool = False, half_overflows: bool = False
) -> Plan:
    """loras: requests may bring some, so the scheme must carry them where it is ours to choose.

    half_overflows: the family's activations exceed fp16. Raises ``CapacityError`` ``not_ready``, which no
    retry mends, for what cannot work here.
    """
    plan = _choose(device, precision, tuning, loras, half_overflows)
    return replace(plan, sentence="; ".join([plan.sentence, *_idle(device, precision, tuning)]))


def choose_whole(device: Device, precision: Precision, tuning: Tuning, *, ranks: bool = False) -> Plan:
    """For a model whose weights stay as they are: the operator's choice comes to a format of products.

    The sentence names what was tuned in vain.

    ranks: the model goes on with the best of its candidates in their order. Rounding exchanges those that are
    close, differently in every batch, and with bf16 products half of what is found can move.
    """
    compute = _compute(device, precision)
    sentence = f"fp32 weights; products {_whole(device, precision, compute)}"
    if precision.mode in ("8bit", "4bit"):
        sentence = (
            f"fp32 weights, small enough that PRECISION_MODE={precision.mode} leaves them; products {compute}"
        )
    if ranks:
        compute, sentence = "float32", "fp32 weights and products: coarser ones would change what is found"
    tuned = {
        "TORCH_COMPILE": tuning.compile,
        "VAE_TILING": tuning.vae_tiling,
        "VAE_SLICING": tuning.vae_slicing,
        "ATTENTION_BACKEND": tuning.attention is not None,
        "OFFLOAD": tuning.offload != "none",
    }
    if idle := [name for name, asked_for in tuned.items() if asked_for]:
        sentence += f"; {', '.join(idle)} for models that make pictures"
    return Plan(compute, {}, sentence)


def refused(sentence: str) -> CapacityError:
    return CapacityError("not_ready", sentence, retryable=False)


def _idle(device: Device, precision: Precision, tuning: Tuning) -> list[str]:
    """Settings that change nothing here: whoever set one would otherwise believe that it does."""
    whole = precision.mode not in ("8bit", "4bit")
    idle = {
        "EIGHT_BIT_BACKEND is for PRECISION_MODE=8bit": precision.eight_bit != "auto"
        and precision.mode != "8bit",
        "QUANTIZE_COMPONENTS is for 8bit and 4bit": whole and precision.components != "all",
        "OFFLOAD is for GPUs": device.type == "cpu" and tuning.offload != "none",
        "INT8_CPU_OFFLOAD is for GPUs": device.type == "cpu" and precision.cpu_offload,
    }
    return [sentence for sentence, applies in idle.items() if applies]


def _choose(device: Device, precision: Precision, tuning: Tuning, loras: bool, half_overflows: bool) -> Plan:
    compute = _compute(device, precision)
    if compute == "float16" and half_overflows:
        raise refused(
            "this family's activations exceed fp16 and its pictures would be black; set PRECISION_MODE to "
            "bf16, or BNB_COMPUTE=bf16 beside 8bit and 4bit"
        )
    if precision.mode not in ("8bit", "4bit"):
        return Plan(compute, {}, _whole(device, precision, compute))
    if precision.mode == "4bit":
        scheme, why = _four_bit(device)
    elif precision.eight_bit == "auto":
        scheme, why = _automatic(device, tuning, loras)
    else:
        scheme, why = _asked_for(device, precision.eight_bit, tuning)
    parts = dict.fromkeys(_QUANTIZED[precision.components], scheme)
    what = {"all": "transformer and text encoder", "text": "text encoder", "transformer": "transformer"}
    sentence = (
        f"{precision.mode} of {what[precision.components]} by {_NAMES[scheme]}, {why}; others {compute}"
    )
    return Plan(compute, parts, sentence)


def _compute(device: Device, precision: Precision) -> Format:
    # Many CPUs emulate bf16, slowly; and a CPU is where results are compared.
    if device.type == "cpu" or precision.mode == "fp32":
        return "float32"
    half = precision.mode == "fp16" or (precision.mode in ("8bit", "4bit") and precision.compute == "fp16")
    return "float16" if half else "bfloat16"


def _whole(device: Device, precision: Precision, compute: Format) -> str:
    if device.type == "cpu":
        return f"float32 on the CPU; PRECISION_MODE={precision.mode} is for GPUs"
    if compute == "bfloat16" and not device.multiplies(AMPERE):
        return f"bfloat16, which {device.name} emulates slowly"
    return f"{compute} as asked"


def _four_bit(device: Device) -> tuple[Scheme, str]:
    _require(device, "bitsandbytes", "PRECISION_MODE=4bit", "PRECISION_MODE=8bit")
    return "bitsandbytes-nf4", "the one 4-bit scheme here"


def _automatic(device: Device, tuning: Tuning, loras: bool) -> tuple[Scheme, str]:
    torchao = "torchao" in device.libraries
    if device.type == "cpu":
        if torchao:
            return "torchao-int8-weights", "the most exact of them on the CPU"
        return "fp8-layerwise", "which needs no further library"
    if tuning.compile and torchao and device.multiplies(ADA):
        return "torchao-fp8", f"since {device.name} multiplies fp8 and TORCH_COMPILE=1 fuses the casts"
    if tuning.compile and torchao and device.multiplies(AMPERE):
        return "torchao-int8", f"since {device.name} multiplies int8 and TORCH_COMPILE=1 fuses the casts"
    if loras and torchao and (tuning.compile or device.multiplies(AMPERE)):
        return "torchao-int8-weights", "which carries LoRAs and is faster than bitsandbytes"
    if device.multiplies(AMPERE) and not tuning.compile:
        return "fp8-layerwise", "the fastest where TORCH_COMPILE=0"
    if device.multiplies(TURING) and "bitsandbytes" in device.libraries and tuning.offload == "none":
        return "bitsandbytes-int8", f"since {device.name} multiplies int8 and has no bf16"
    if torchao and (loras or tuning.compile):
        return "torchao-int8-weights", f"since {device.name} multiplies no 8-bit numbers that it could use"
    return "fp8-layerwise", f"to save memory; {device.name} multiplies no 8-bit numbers that it could use"


def _asked_for(device: Device, backend: str, tuning: Tuning) -> tuple[Scheme, str]:
    named = f"EIGHT_BIT_BACKEND={backend}"
    if backend in _LIBRARY:
        _require(device, _LIBRARY[backend], named, "EIGHT_BIT_BACKEND=auto")
    if backend == "bitsandbytes":
        if device.type != "cpu" and not device.multiplies(TURING):
            raise refused(
                f"{named} needs a card of sm75 or later and this is {device.name}; set EIGHT_BIT_BACKEND=auto"
            )
        return "bitsandbytes-int8", "as asked"
    if backend == "torchao-int8":
        if device.multiplies(AMPERE) and tuning.compile:
            return "torchao-int8", "as asked"
        return "torchao-int8-weights", _weights_alone(device, "int8", AMPERE)
    if backend == "torchao-fp8":
        if device.multiplies(ADA) and tuning.compile:
            return "torchao-fp8", "as asked"
        return "torchao-fp8-weights", _weights_alone(device, "fp8", ADA)
    return "fp8-layerwise", "as asked"


def _weights_alone(device: Device, number: str, generation: tuple[int, int]) -> str:
    if device.multiplies(generation):
        return "since rounding activations pays only with TORCH_COMPILE=1"
    return f"since {device.name} multiplies no {number}"


def _require(device: Device, library: str, wanted: str, instead: str) -> None:
    if library not in device.libraries:
        raise refused(f"{wanted} needs {library}, which is not installed; install it or set {instead}")
