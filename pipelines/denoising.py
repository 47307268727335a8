"""What every flow-matching family shares: a row's schedule, its noise, padding, the Euler step.

Rows are independent: each has its own generator and its own table of sigmas, so that requests with
different seeds and step counts can share a forward. Knows no model.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.errors import ExecutionError


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps of one row, as exact float32 values.

    timesteps: where each step starts, 1000 down to 0.
    deltas:    sigma[i + 1] - sigma[i], each negative; they sum to minus the first sigma.
    """

    timesteps: tuple[float, ...]
    deltas: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.timesteps)


def make_schedule(solver: Any, steps: int, tokens: int) -> Schedule:
    """The schedule that diffusers' ``FlowMatchEulerDiscreteScheduler`` gives an image of ``tokens``.

    solver: the checkpoint's; it is stateful, so a copy is asked. steps: >= 1.
    Source: ``pipeline_qwenimage_edit_plus.py``, "5. Prepare timesteps".
    """
    if steps == 1 and solver.config.shift_terminal:
        # One step goes from pure noise to the picture. The stock solver stretches the schedule between its
        # two ends, which for a single point is 0/0.
        return Schedule((float(solver.config.num_train_timesteps),), (-1.0,))
    solver = copy.deepcopy(solver)
    solver.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=_shift(solver.config, tokens))
    sigmas = solver.sigmas
    return Schedule(tuple(solver.timesteps.tolist()), tuple((sigmas[1:] - sigmas[:-1]).tolist()))


def _shift(config: Any, tokens: int) -> float:
    """Source: ``calculate_shift`` of the same file, with its defaults."""
    short, long = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (high - low) / (long - short)
    return float(tokens * slope + low - slope * short)


def draw_noise(seed: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal values of the row's own generator.

    Drawn on the CPU, in ``dtype``, on any machine: a seed means the same picture with and without a GPU's
    generator, and the same as diffusers draws from a CPU generator.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=dtype).to(device)


def pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Sequences [length, width] as one [rows, longest, width], and which places are real.

    The mask is bool [rows, longest], or None when all rows are equally long: attention without a mask is
    the faster path, and the one a single row takes.
    """
    lengths = [len(row) for row in rows]
    if min(lengths) == max(lengths):
        return torch.stack(list(rows)), None
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    places = torch.arange(max(lengths), device=padded.device)
    return padded, places < torch.tensor(lengths, device=padded.device)[:, None]


def euler_step(latents: Tensor, velocity: Tensor, delta: Tensor) -> Tensor:
    """Each row moved along its velocity by its own delta.

    latents, velocity: [rows, tokens, channels] in the model's dtype. delta: float32 [rows].
    All in float32 until the end. diffusers' ``FlowMatchEulerDiscreteScheduler.step`` is the same in fp32;
    in bf16 it rounds the delta and the product too.
    """
    return (latents.float() + delta[:, None, None] * velocity.float()).to(velocity.dtype)


def require_finite(values: Tensor) -> None:
    """Raises ``ExecutionError`` when a picture went wrong. values: any shape; waits for the device."""
    if not torch.isfinite(values).all():
        raise ExecutionError(
            "pipeline_error", "the model gave values that are not numbers; try another seed or a lower cfg"
        )
