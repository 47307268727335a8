"""Solvers of the SDXL family: which one a model uses, and a copy of it for every request.

A solver of diffusers remembers where it is in its schedule, so no two requests can share one. Some draw
noise at every step, from the request's own generator.
"""

import copy
import json
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import Tensor

from core.errors import CapacityError

# Of first order: a step is one forward. SDXL base names the first, Turbo the second, and many
# fine-tuned checkpoints the third.
_KINDS = {
    kind.__name__: kind
    for kind in (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler)
}


def read_solver(folder: Path, *, lightning: bool) -> Any:
    """The solver that the checkpoint in ``folder`` names, or the one that its Lightning form needs.

    Lightning was distilled on Euler steps that begin at the last training step. Source: model card of
    ByteDance/SDXL-Lightning.
    Raises ``CapacityError`` ``not_ready`` for a solver that is not known here.
    """
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    if lightning:
        return EulerDiscreteScheduler.from_config(config, timestep_spacing="trailing")
    kind = _KINDS.get(config["_class_name"])
    if kind is None:
        raise CapacityError(
            "not_ready",
            f"the checkpoint's solver {config['_class_name']} is not known here; name one of "
            f"{', '.join(_KINDS)} in its scheduler_config.json",
            retryable=False,
        )
    return kind.from_config(config)


class RowSolver:
    """One request's solver and generator, at the request's place in its schedule.

    steps: of the whole schedule. run: how many of them, counted from the end, are computed.
    generator: on the CPU; everything random of this request comes from it.
    expected: the picture's latents as the last step's prediction has them; None before it.
    """

    def __init__(self, solver: Any, steps: int, run: int, generator: torch.Generator) -> None:
        self._solver = copy.deepcopy(solver)
        self._solver.set_timesteps(steps)
        _cut(self._solver, steps)
        self._solver.set_begin_index(steps - run)
        self._starts: Tensor = self._solver.timesteps[steps - run :]
        self._done = 0
        self.generator = generator
        self.expected: Tensor | None = None

    @property
    def remaining(self) -> int:
        return len(self._starts) - self._done

    @property
    def timestep(self) -> float:
        """Where the next step starts."""
        return float(self._starts[self._done])

    def fork(self) -> Self:
        """An equal solver whose steps leave this one where it is."""
        fork = copy.copy(self)
        fork._solver = copy.deepcopy(self._solver)
        fork.generator = self.generator.clone_state()
        return fork

    def noise_alone(self, noise: Tensor) -> Tensor:
        """What a whole schedule begins with. noise: standard normal values."""
        latents: Tensor = noise * self._solver.init_noise_sigma
        return latents

    def noised(self, clean: Tensor, noise: Tensor) -> Tensor:
        """``clean`` as noisy as latents are where the next step starts. Both [1, channels, height, width]."""
        noised: Tensor = self._solver.add_noise(clean, noise, self._starts[self._done : self._done + 1])
        return noised

    def scaled(self, latents: Tensor) -> Tensor:
        """What the model is shown of ``latents``."""
        scaled: Tensor = self._solver.scale_model_input(latents, self._starts[self._done])
        return scaled

    def moved(self, prediction: Tensor, latents: Tensor) -> Tensor:
        """``latents`` after the next step, which is now done. Both [1, channels, height, width]."""
        done = self._solver.step(prediction, self._starts[self._done], latents, generator=self.generator)
        self._done += 1
        # The multistep solver answers with no such field; it remembers, and in that very form.
        self.expected = done["pred_original_sample"] if len(done) > 1 else self._solver.model_outputs[-1]
        moved: Tensor = done["prev_sample"]
        return moved


def _cut(solver: Any, steps: int) -> None:
    """Drop what rounding adds: a trailing schedule of 61 steps has 62, the last before the first timestep."""
    if len(solver.timesteps) > steps:
        solver.timesteps = solver.timesteps[:steps]
        solver.sigmas = torch.cat([solver.sigmas[:steps], solver.sigmas[-1:]])
