"""The Qwen-Image-Edit family: many users' edits in one forward of the transformer.

Each row has its own prompt, pictures, seed, schedule, guidance and place in its schedule. Parity is with
``__call__`` of diffusers' ``pipeline_qwenimage_edit_plus.py`` (and ``pipeline_qwenimage_edit.py`` for the
first release), row by row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from core.request import Image, InferenceRequest
from core.result import InferenceResult
from core.spec import PipelineSpec
from pipelines.condition_cache import ConditionCache
from pipelines.denoising import Schedule, draw_noise, euler_step, make_schedule, pad, require_finite
from pipelines.device import device_errors, finish, weigh
from pipelines.options import ModelOptions, Report, Weights
from pipelines.qwen_conditions import CACHED, PATCH, ConditionEncoder
from pipelines.qwen_loading import Components, load_components
from pipelines.qwen_text import NUMBERED_PICTURES, ONE_PICTURE, PromptEncoder
from pipelines.qwen_vae import SCALE, PictureVae, pack


def load_edit(spec: PipelineSpec, options: ModelOptions, report: Report) -> "QwenImageEdit":
    """The first release: one picture, introduced without a number."""
    parts = load_components(spec, options, report, pipeline_class="QwenImageEditPipeline")
    return QwenImageEdit(parts, ONE_PICTURE, options.condition_cache_bytes)


def load_edit_plus(spec: PipelineSpec, options: ModelOptions, report: Report) -> "QwenImageEdit":
    """Everything since 2509: one to three numbered pictures."""
    parts = load_components(spec, options, report, pipeline_class="QwenImageEditPlusPipeline")
    return QwenImageEdit(parts, NUMBERED_PICTURES, options.condition_cache_bytes)


@dataclass(slots=True, eq=False, kw_only=True)
class EditState:
    """One request between ``prepare`` and ``decode``.

    latents:    [canvas tokens, 64], in the model's dtype; replaced by each step.
    references: [reference tokens, 64]. prompt, negative: [length, width]; negative is None if unguided.
    """

    request: InferenceRequest
    schedule: Schedule
    latents: Tensor
    references: Tensor
    prompt: Tensor
    negative: Tensor | None
    done: int = 0

    @property
    def remaining(self) -> int:
        return len(self.schedule) - self.done

    @property
    def finished(self) -> bool:
        return self.remaining == 0

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(1, rows, columns) in tokens of the canvas and each reference."""
        sizes = (self.request.canvas, *self.request.reference_sizes)
        return [(1, height // PATCH, width // PATCH) for width, height in sizes]


class QwenImageEdit:
    """One loaded checkpoint. See ``core.pipeline.Pipeline`` for the contract.

    introduction: how the prompt template names a picture. cache_bytes: bound of the condition cache.
    Raises ``ValueError`` for a checkpoint whose configuration asks for a loop other than this one.
    """

    lightning_enabled = False

    def __init__(self, parts: Components, introduction: str, cache_bytes: int) -> None:
        _require_plain_loop(parts)
        self._parts = parts
        self._vae = PictureVae(parts.vae, parts.device, parts.dtype)
        cache = ConditionCache(cache_bytes, CACHED)
        prompts = PromptEncoder(parts.text_encoder, parts.processor, introduction, parts.device)
        self._conditions = ConditionEncoder(prompts, self._vae, cache)
        self.caches: Mapping[str, dict[str, int]] = cache.counts

    @cached_property
    def weights(self) -> Weights:
        parts = self._parts
        return weigh(parts.device, parts.transformer, parts.vae, parts.text_encoder)

    @torch.inference_mode()
    def prepare(self, requests: Sequence[InferenceRequest]) -> list[EditState]:
        """States of edit requests; texts and references of all of them are encoded together.

        Raises ``RequestError`` ``invalid_parameter`` for a text of too many tokens.
        """
        with device_errors():
            return [
                EditState(
                    request=request,
                    schedule=make_schedule(self._parts.solver, request.steps, _tokens(request)),
                    latents=self._noise(request),
                    references=condition.references,
                    prompt=condition.prompt,
                    negative=condition.negative,
                )
                for request, condition in zip(requests, self._conditions.encode(requests), strict=True)
            ]

    @torch.inference_mode()
    def step(self, states: Sequence[EditState]) -> None:
        """One forward for all rows, guided ones twice in it, then each row's own Euler step."""
        shapes = states[0].shapes
        if any(state.finished or state.shapes != shapes for state in states):
            raise ValueError("rows of one forward are unfinished and equal in canvas and reference sizes")
        with device_errors():
            velocity = self._velocity(states, shapes)
            deltas = self._row_values([state.schedule.deltas[state.done] for state in states])
            latents = torch.stack([state.latents for state in states])
            moved = euler_step(latents, velocity, deltas)
            finish(moved.device)
        for state, row in zip(states, moved, strict=True):
            state.latents = row
            state.done += 1

    @torch.inference_mode()
    def decode(self, states: Sequence[EditState]) -> list[InferenceResult]:
        """Pictures of finished states. Raises ``ExecutionError`` when one has values that are no numbers."""
        with device_errors():
            latents = torch.stack([state.latents for state in states])
            require_finite(latents)
            pictures = self._vae.decode(latents, states[0].request.canvas)
        return [_result(state.request, picture) for state, picture in zip(states, pictures, strict=True)]

    def _velocity(self, states: Sequence[EditState], shapes: list[tuple[int, int, int]]) -> Tensor:
        """[rows, canvas tokens, 64], guided where a row asks for it."""
        guided = [i for i, state in enumerate(states) if state.negative is not None]
        order = [*range(len(states)), *guided]
        texts, mask = pad(
            [state.prompt for state in states]
            + [state.negative for state in states if state.negative is not None]
        )
        pictures = [torch.cat([state.latents, state.references]) for state in states]
        starts = [states[i].schedule.timesteps[states[i].done] for i in order]
        # Rounded before the division, as upstream does: in bf16 the order matters.
        timestep = self._row_values(starts).to(self._parts.dtype) / 1000
        velocity: Tensor = self._parts.transformer(
            hidden_states=torch.stack([pictures[i] for i in order]),
            timestep=timestep,
            encoder_hidden_states=texts,
            encoder_hidden_states_mask=mask,
            img_shapes=[shapes] * len(order),
            return_dict=False,
        )[0][:, : len(states[0].latents)]
        if not guided:
            return velocity
        scales = self._row_values([states[i].request.cfg for i in guided])
        toward, away = velocity[guided], velocity[len(states) :]
        velocity = velocity[: len(states)].clone()
        velocity[guided] = guide(toward, away, scales)
        return velocity

    def _row_values(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).to(self._parts.device)

    def _noise(self, request: InferenceRequest) -> Tensor:
        width, height = request.canvas
        channels = self._parts.transformer.config.in_channels // 4
        shape = (1, channels, 1, height // SCALE, width // SCALE)
        return pack(draw_noise(request.seed, shape, self._parts.dtype, self._parts.device))[0]


def _require_plain_loop(parts: Components) -> None:
    for config, flag in (
        (parts.solver.config, "stochastic_sampling"),
        (parts.transformer.config, "guidance_embeds"),
    ):
        if config[flag]:
            raise ValueError(f"{flag} is not implemented for this family")


def guide(toward: Tensor, away: Tensor, scales: Tensor) -> Tensor:
    """True classifier-free guidance with the norm of the prompt's own velocity, token by token.

    toward, away: velocities [rows, tokens, channels] under the prompt and under the negative prompt.
    scales: float32 [rows].
    Each product is rounded to the model's dtype, as upstream's is.
    """
    combined = away + (scales[:, None, None] * (toward - away)).to(away.dtype)
    rescale = torch.norm(toward, dim=-1, keepdim=True) / torch.norm(combined, dim=-1, keepdim=True)
    guided: Tensor = combined * rescale
    return guided


def _tokens(request: InferenceRequest) -> int:
    width, height = request.canvas
    return (width // PATCH) * (height // PATCH)


def _result(request: InferenceRequest, pixels: Tensor) -> InferenceResult:
    """pixels: uint8 [height, width, 3] on the CPU."""
    height, width, _ = pixels.shape
    return InferenceResult(
        id=request.id,
        image=Image(pixels=pixels.numpy().tobytes(), width=width, height=height, digest=request.id),
        model=request.model,
        seed=request.seed,
        steps=request.steps,
    )
