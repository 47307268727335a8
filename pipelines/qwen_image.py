"""The Qwen-Image family: many users' pictures and edits in one forward of the transformer.

Each row has its own prompt, pictures, mask, seed, schedule, guidance and place in its schedule. Parity is
with ``__call__`` of diffusers' ``pipeline_qwenimage_edit_plus.py`` (``pipeline_qwenimage_edit.py`` for the
first release, ``pipeline_qwenimage.py`` for a text alone), row by row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from core.request import Image, InferenceRequest
from core.result import InferenceResult
from core.spec import PipelineSpec
from pipelines.adapters import AdapterSet, Lease
from pipelines.condition_cache import ConditionCache
from pipelines.denoising import Schedule, draw_noise, euler_step, make_schedule, pad, require_finite
from pipelines.device import device_errors, finish, weigh
from pipelines.options import ModelOptions, Report, Weights
from pipelines.preview import LatentColours
from pipelines.qwen_conditions import CACHED, PATCH, ConditionEncoder, Conditions
from pipelines.qwen_inpaint import Region, read_region
from pipelines.qwen_loading import Components, load_components
from pipelines.qwen_step_cache import Reuse, Stored, predict
from pipelines.qwen_text import NUMBERED_PICTURES, ONE_PICTURE, TEXT_ALONE, PromptEncoder, Template
from pipelines.qwen_vae import SCALE, PictureVae, pack, unpack


def load_edit(spec: PipelineSpec, options: ModelOptions, report: Report) -> "QwenImageEdit":
    """The first release: one picture, introduced without a number."""
    parts = load_components(spec, options, report, pipeline_class="QwenImageEditPipeline")
    return QwenImageEdit(parts, ONE_PICTURE, options.condition_cache_bytes, options)


def load_generate(spec: PipelineSpec, options: ModelOptions, report: Report) -> "QwenImageEdit":
    """From a text alone; such a checkpoint has no processor of pictures."""
    parts = load_components(spec, options, report, pipeline_class="QwenImagePipeline", sees_pictures=False)
    return QwenImageEdit(parts, TEXT_ALONE, options.condition_cache_bytes, options)


def load_edit_plus(spec: PipelineSpec, options: ModelOptions, report: Report) -> "QwenImageEdit":
    """Everything since 2509: one to three numbered pictures."""
    parts = load_components(spec, options, report, pipeline_class="QwenImageEditPlusPipeline")
    return QwenImageEdit(parts, NUMBERED_PICTURES, options.condition_cache_bytes, options)


@dataclass(slots=True, eq=False, kw_only=True)
class EditState:
    """One request between ``prepare`` and ``decode``.

    latents:    [canvas tokens, 64], in the model's dtype; replaced by each step.
    references: [reference tokens, 64]. prompt, negative: [length, width]; negative is None if unguided.
    region: None when all of the canvas is painted.
    stored: what the next step can reuse, under the prompt and under the negative.
    expected: where the last step's velocity leads; None unless previews are asked for.
    """

    request: InferenceRequest
    schedule: Schedule
    latents: Tensor
    references: Tensor
    prompt: Tensor
    negative: Tensor | None
    region: Region | None
    adapters: Lease
    stored: tuple[Stored | None, Stored | None] = (None, None)
    done: int = 0
    expected: Tensor | None = None

    @property
    def remaining(self) -> int:
        return len(self.schedule) - self.done

    @property
    def finished(self) -> bool:
        return self.remaining == 0

    @property
    def next_sigma(self) -> float:
        """Share of noise where the step now due ends."""
        return self.schedule.timesteps[self.done + 1] / 1000 if self.remaining > 1 else 0.0

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(1, rows, columns) in tokens of the canvas and each reference."""
        sizes = (self.request.canvas, *self.request.reference_sizes)
        return [(1, height // PATCH, width // PATCH) for width, height in sizes]


class QwenImageEdit:
    """One loaded checkpoint. See ``core.pipeline.Pipeline`` for the contract.

    template: the one that the checkpoint was trained under. cache_bytes: bound of the condition cache.
    options: those of users' LoRAs are looked at.
    Raises ``ValueError`` for a checkpoint whose configuration asks for a loop other than this one.
    """

    def __init__(
        self, parts: Components, template: Template, cache_bytes: int, options: ModelOptions | None = None
    ) -> None:
        _require_plain_loop(parts)
        self._parts = parts
        self.precision = parts.precision
        self._vae = PictureVae(parts.vae, parts.device, parts.dtype)
        cache = ConditionCache(cache_bytes, CACHED)
        prompts = PromptEncoder(parts.text_encoder, parts.processor, template, parts.device)
        self._conditions = ConditionEncoder(prompts, self._vae, cache)
        self._colours = LatentColours(
            self._vae.decode_square, parts.vae.config.z_dim, parts.device, parts.dtype
        )
        self._reuses = {"hits": 0, "misses": 0}  # of forwards of rows that asked for the step cache
        self._adapters = AdapterSet(
            {"denoiser": parts.transformer},
            options or ModelOptions(),
            dtype=parts.dtype,
            device=parts.device,
        )
        self.lightning_enabled = parts.lightning
        self.caches: Mapping[str, dict[str, int]] = {
            **cache.counts,
            "steps": self._reuses,
            "loras": self._adapters.counts,
        }

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
            adapters = self._adapters.hold(requests[0].adapters)
            encoded = self._conditions.encode(requests)
            return [
                self._begin(request, row, adapters) for request, row in zip(requests, encoded, strict=True)
            ]

    @torch.inference_mode()
    def step(self, states: Sequence[EditState]) -> None:
        """One forward for all rows, guided ones twice in it, then each row's own Euler step."""
        shapes = states[0].shapes
        adapters = states[0].request.adapters
        if any(state.finished or state.shapes != shapes for state in states):
            raise ValueError("rows of one forward are unfinished and equal in canvas and reference sizes")
        if any(state.request.adapters != adapters for state in states):
            raise ValueError("rows of one forward have the same adapters")
        with device_errors():
            self._adapters.use(adapters)
            velocity, stored = self._velocity(states, shapes)
            deltas = self._row_values([state.schedule.deltas[state.done] for state in states])
            latents = torch.stack([state.latents for state in states])
            moved = [
                row if state.region is None else state.region.keep(row, state.next_sigma)
                for state, row in zip(states, euler_step(latents, velocity, deltas), strict=True)
            ]
            expected = [_expected(state, row) for state, row in zip(states, velocity, strict=True)]
            finish(latents.device)
        for state, row, kept, clean in zip(states, moved, stored, expected, strict=True):
            self._count_reuse(state.stored, kept)
            state.latents, state.expected = row, clean
            state.done += 1
            state.stored = (None, None) if state.finished else kept

    @torch.inference_mode()
    def decode(self, states: Sequence[EditState]) -> list[InferenceResult]:
        """Pictures of finished states. Raises ``ExecutionError`` when one has values that are no numbers."""
        with device_errors():
            latents = torch.stack([state.latents for state in states])
            require_finite(latents)
            pictures = self._vae.decode(latents, states[0].request.canvas)
        return [
            _result(state, picture, lightning=self.lightning_enabled)
            for state, picture in zip(states, pictures, strict=True)
        ]

    @torch.inference_mode()
    def preview(self, state: EditState) -> Image:
        """What the row will become as far as its last step tells, at an eighth of the canvas's sides."""
        latents = state.latents if state.expected is None else state.expected
        with device_errors():
            frames = unpack(latents[None], state.request.canvas)
            return self._colours.show(frames[0, :, 0], state.request.id)

    def _begin(self, request: InferenceRequest, conditions: Conditions, adapters: Lease) -> EditState:
        noise = self._noise(request)
        return EditState(
            request=request,
            schedule=make_schedule(self._parts.solver, request.steps, len(noise)),
            latents=noise,
            references=conditions.references,
            prompt=conditions.prompt,
            negative=conditions.negative,
            region=read_region(request, conditions.canvas, noise),
            adapters=adapters,
        )

    def _velocity(
        self, states: Sequence[EditState], shapes: list[tuple[int, int, int]]
    ) -> tuple[Tensor, list[tuple[Stored | None, Stored | None]]]:
        """[rows, canvas tokens, 64], guided where a row asks for it; and what each can reuse next time."""
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
        canvas_tokens = len(states[0].latents)
        sides = [0] * len(states) + [1] * len(guided)
        predicted, stored = predict(
            self._parts.transformer,
            {
                "hidden_states": torch.stack([pictures[i] for i in order]),
                "timestep": timestep,
                "encoder_hidden_states": texts,
                "encoder_hidden_states_mask": mask,
                "img_shapes": [shapes] * len(order),
            },
            [
                Reuse.of(states[i].request.step_cache, states[i].stored[side])
                for i, side in zip(order, sides, strict=True)
            ],
            canvas_tokens,
        )
        away_stored = dict(zip(guided, stored[len(states) :], strict=True))
        kept = [(stored[i], away_stored.get(i)) for i in range(len(states))]
        velocity = predicted[:, :canvas_tokens]
        if not guided:
            return velocity, kept
        scales = self._row_values([states[i].request.cfg for i in guided])
        toward, away = velocity[guided], velocity[len(states) :]
        velocity = velocity[: len(states)].clone()
        velocity[guided] = guide(toward, away, scales)
        return velocity, kept

    def _count_reuse(self, before: Sequence[Stored | None], after: Sequence[Stored | None]) -> None:
        for old, new in zip(before, after, strict=True):
            if new is not None:  # a row that was reused keeps the very same
                self._reuses["hits" if new is old else "misses"] += 1

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


def _expected(state: EditState, velocity: Tensor) -> Tensor | None:
    """The picture's latents, were the step now due the last one."""
    if not state.request.previews:
        return None
    clean = state.latents - state.schedule.timesteps[state.done] / 1000 * velocity
    return clean if state.region is None else state.region.keep(clean, 0.0)


def _result(state: EditState, pixels: Tensor, *, lightning: bool) -> InferenceResult:
    """pixels: uint8 [height, width, 3] on the CPU."""
    height, width, _ = pixels.shape
    request = state.request
    if state.region is not None:
        pixels = state.region.paste(pixels)
    return InferenceResult(
        id=request.id,
        output=Image(pixels=pixels.numpy().tobytes(), width=width, height=height, digest=request.id),
        model=request.model,
        seed=request.seed,
        steps=request.steps,
        lightning_enabled=lightning,
    )
