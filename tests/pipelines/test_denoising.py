"""The shared pieces of a denoising loop, each against diffusers' own."""

import math

import numpy as np
import pytest
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_shift
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from core.errors import ExecutionError
from pipelines.denoising import draw_noise, euler_step, make_schedule, pad, require_finite
from pipelines.pocket.architecture import SOLVER

CPU = torch.device("cpu")
# As published with the Lightning adapters.
LIGHTNING = SOLVER | {"base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}


def stock_solver(steps: int, tokens: int) -> FlowMatchEulerDiscreteScheduler:
    solver = FlowMatchEulerDiscreteScheduler(**SOLVER)
    mu = calculate_shift(
        tokens,
        SOLVER["base_image_seq_len"],
        SOLVER["max_image_seq_len"],
        SOLVER["base_shift"],
        SOLVER["max_shift"],
    )
    solver.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    return solver


@pytest.mark.parametrize("steps", [2, 4, 40])
@pytest.mark.parametrize("tokens", [16, 256, 4096, 16384])
def test_a_schedule_is_the_stock_solvers(steps: int, tokens: int) -> None:
    """Bit by bit: a step that starts elsewhere is another picture."""
    schedule = make_schedule(FlowMatchEulerDiscreteScheduler(**SOLVER), steps, tokens)
    solver = stock_solver(steps, tokens)
    assert schedule.timesteps == tuple(solver.timesteps.tolist())
    assert schedule.deltas == tuple(solver.sigmas.diff().tolist())


def test_the_checkpoints_solver_is_left_as_it_was() -> None:
    """It is shared by all rows."""
    solver = FlowMatchEulerDiscreteScheduler(**SOLVER)
    before = solver.timesteps.clone()
    make_schedule(solver, 4, 256)
    assert torch.equal(solver.timesteps, before)


@pytest.mark.parametrize("config", [SOLVER, LIGHTNING], ids=["stock", "lightning"])
def test_one_step_goes_all_the_way(config: dict[str, object]) -> None:
    """The stock solver gives NaN for a single step with a terminal shift."""
    schedule = make_schedule(FlowMatchEulerDiscreteScheduler(**config), 1, 256)
    assert schedule.timesteps == (1000.0,)
    assert schedule.deltas == (-1.0,)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.0), (torch.bfloat16, 0.02)])
def test_an_euler_step_is_the_stock_solvers(dtype: torch.dtype, tolerance: float) -> None:
    """With each row at its own place in its own schedule; in bf16 the stock solver rounds more often."""
    places = [(4, 0), (8, 3), (2, 1)]  # steps, step to take
    latents = torch.randn(3, 5, 64).to(dtype)
    velocity = torch.randn(3, 5, 64).to(dtype)
    schedules = [make_schedule(FlowMatchEulerDiscreteScheduler(**SOLVER), steps, 16) for steps, _ in places]
    deltas = torch.tensor([s.deltas[i] for s, (_, i) in zip(schedules, places, strict=True)])
    moved = euler_step(latents, velocity, deltas)
    for row, (steps, step) in enumerate(places):
        solver = stock_solver(steps, 16)
        solver.set_begin_index(step)
        (theirs,) = solver.step(velocity[row], solver.timesteps[step], latents[row], return_dict=False)
        assert (moved[row].float() - theirs.float()).abs().max() <= tolerance


def test_noise_belongs_to_the_seed_alone() -> None:
    """Neither to the global generator nor to what was drawn before."""
    first = draw_noise(7, (2, 3), torch.float32, CPU)
    torch.randn(5)
    assert torch.equal(first, draw_noise(7, (2, 3), torch.float32, CPU))
    assert not torch.equal(first, draw_noise(8, (2, 3), torch.float32, CPU))
    draw_noise(2**63 - 1, (1,), torch.float32, CPU)


def test_padding_marks_what_is_real() -> None:
    """Rows of equal length need no mask, which is the faster attention."""
    short, long = torch.ones(2, 4), torch.ones(3, 4)
    padded, mask = pad([short, long])
    assert padded.sum(dim=(1, 2)).tolist() == [8, 12]
    assert mask is not None
    assert mask.tolist() == [[True, True, False], [True, True, True]]
    assert pad([long, long])[1] is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers_are_refused(value: float) -> None:
    """A black picture with status 200 is worse than an error."""
    with pytest.raises(ExecutionError):
        require_finite(torch.tensor([0.0, value]))
    require_finite(torch.zeros(3))
