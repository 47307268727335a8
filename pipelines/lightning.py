"""A Lightning LoRA made part of the weights, and the schedule that it was trained for.

All of the file is applied or the load fails: a model with half of it paints noise, and one without it
paints blurs in so few steps.
"""

import math
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from pipelines.beside import REMEDY, unusable
from pipelines.lora_files import LoraFile
from pipelines.lora_keys import BadLora
from pipelines.lora_layers import Targets, adapted, attach, detach, read

_ADAPTER = "lightning"
# Source: ``scheduler_config`` in the model card of lightx2v/Qwen-Image-Lightning.
_SCHEDULE = {
    "base_image_seq_len": 256,
    "base_shift": math.log(3),
    "max_image_seq_len": 8192,
    "max_shift": math.log(3),
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": None,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}


@torch.no_grad()
def fuse(denoiser: Any, file: LoraFile, *, remedy: str = REMEDY) -> None:
    """Add the LoRA to the weights of a whole, unquantized model, in its own number format.

    remedy: what the operator can do about a file that does not fit.
    Raises ``CapacityError`` ``not_ready`` unless every layer of the file was found and changed.
    """
    try:
        targets = Targets({"denoiser": denoiser})
        matched = targets.match(file)
        factors = read(file, matched, dtype=denoiser.dtype, device=denoiser.device)["denoiser"]
        attach(denoiser, _ADAPTER, factors)
    except BadLora as error:
        raise unusable(error, remedy) from None
    fused = 0
    for _, layer in adapted(denoiser):
        layer.merge(adapter_names=[_ADAPTER])
        fused += 1
        layer.merged_adapters.clear()  # for good: the layer must not take it out again
    detach(denoiser, _ADAPTER)
    if fused != len(file.layers) or adapted(denoiser):
        raise unusable(BadLora(f"{fused} of its {len(file.layers)} layers were applied"), remedy)


def few_step_solver(solver: Any) -> FlowMatchEulerDiscreteScheduler:
    """The solver of a Qwen-Image checkpoint with the schedule that the Lightning files were trained for."""
    return FlowMatchEulerDiscreteScheduler.from_config(dict(solver.config) | _SCHEDULE)
