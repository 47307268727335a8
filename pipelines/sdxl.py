"""The SDXL family: text to image, image to image and inpainting of many users in one forward of the UNet.

Each row has its own prompt, picture, mask, seed, solver, guidance and place in its schedule. Parity is with
``__call__`` of diffusers' ``pipeline_stable_diffusion_xl.py``, ``…_img2img.py`` and ``…_inpaint.py``, row by
row.
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
from pipelines.denoising import pad, require_finite
from pipelines.device import device_errors, finish, weigh
from pipelines.options import ModelOptions, Report, Weights
from pipelines.preview import LatentColours
from pipelines.sdxl_loading import Components, load_components
from pipelines.sdxl_solvers import RowSolver
from pipelines.sdxl_starts import MOMENTS, Kept, Starter
from pipelines.sdxl_text import CACHED, PromptEncoder, Text
from pipelines.sdxl_vae import PictureVae


def load(spec: PipelineSpec, options: ModelOptions, report: Report) -> "StableDiffusionXL":
    return StableDiffusionXL(load_components(spec, options, report), options.condition_cache_bytes, options)


@dataclass(slots=True, eq=False, kw_only=True)
class PictureState:
    """One request between ``prepare`` and ``decode``.

    latents: [1, 4, height / 8, width / 8], in the denoiser's dtype; replaced, like the solver, by each step.
    negative: None if unguided. kept: None without a mask.
    """

    request: InferenceRequest
    solver: RowSolver
    latents: Tensor
    prompt: Text
    negative: Text | None
    kept: Kept | None
    adapters: Lease

    @property
    def remaining(self) -> int:
        return self.solver.remaining

    @property
    def finished(self) -> bool:
        return self.remaining == 0

    @property
    def time_ids(self) -> tuple[int, ...]:
        """Size, crop and target size that the denoiser is told. Source: ``_get_add_time_ids``."""
        width, height = self.request.canvas
        return (height, width, 0, 0, height, width)


class StableDiffusionXL:
    """One loaded checkpoint. See ``core.pipeline.Pipeline`` for the contract.

    cache_bytes: bound of the condition cache. options: those of users' LoRAs are looked at.
    Raises ``ValueError`` for a checkpoint whose configuration asks for a loop other than this one.
    """

    def __init__(self, parts: Components, cache_bytes: int, options: ModelOptions | None = None) -> None:
        _require_plain_loop(parts)
        self._parts = parts
        self.precision = parts.precision
        self._vae = PictureVae(parts.vae, parts.device, parts.dtype)
        self._colours = LatentColours(
            self._vae.decode, parts.vae.config.latent_channels, parts.device, parts.dtype
        )
        cache = ConditionCache(cache_bytes, (*CACHED, MOMENTS))
        self._prompts = PromptEncoder(
            parts.encoders, cache, parts.device, parts.dtype, zero_negative=parts.zero_negative
        )
        channels = parts.unet.config.in_channels
        self._starter = Starter(self._vae, parts.solver, cache, channels, parts.device, parts.dtype)
        self._adapters = AdapterSet(
            {
                "denoiser": parts.unet,
                "text_encoder": parts.encoders[0][1],
                "text_encoder_2": parts.encoders[1][1],
            },
            options or ModelOptions(),
            dtype=parts.dtype,
            device=parts.device,
        )
        self.lightning_enabled = parts.lightning
        self.caches: Mapping[str, dict[str, int]] = {**cache.counts, "loras": self._adapters.counts}

    @cached_property
    def weights(self) -> Weights:
        parts = self._parts
        return weigh(parts.device, parts.unet, parts.vae, *(model for _, model in parts.encoders))

    @torch.inference_mode()
    def prepare(self, requests: Sequence[InferenceRequest]) -> list[PictureState]:
        """States of the requests; texts and pictures of all of them are encoded together.

        Raises ``RequestError`` ``invalid_parameter`` for a text of too many tokens.
        """
        with device_errors():
            adapters = self._adapters.hold(requests[0].adapters)
            self._adapters.use(requests[0].adapters)  # texts are encoded through them too
            texts = self._prompts.encode(requests)
            starts = self._starter.begin(requests)
            return [
                PictureState(
                    request=request,
                    solver=start.solver,
                    latents=start.latents,
                    prompt=prompt,
                    negative=negative,
                    kept=start.kept,
                    adapters=adapters,
                )
                for request, (prompt, negative), start in zip(requests, texts, starts, strict=True)
            ]

    @torch.inference_mode()
    def step(self, states: Sequence[PictureState]) -> None:
        """One forward for all rows, guided ones twice in it, then each row's own solver."""
        canvas = states[0].request.canvas
        if any(state.finished or state.request.canvas != canvas for state in states):
            raise ValueError("rows of one forward are unfinished and equal in canvas")
        adapters = states[0].request.adapters
        if any(state.request.adapters != adapters for state in states):
            raise ValueError("rows of one forward have the same adapters")
        with device_errors():
            self._adapters.use(adapters)
            # Solvers and generators remember: forks take the step, and are kept only if all of it succeeds.
            solvers = [state.solver.fork() for state in states]
            predictions = self._predict(states, solvers)
            moved = [
                _advance(state, solver, prediction[None])
                for state, solver, prediction in zip(states, solvers, predictions, strict=True)
            ]
            finish(self._parts.device)
        for state, solver, latents in zip(states, solvers, moved, strict=True):
            state.solver = solver
            state.latents = latents

    @torch.inference_mode()
    def decode(self, states: Sequence[PictureState]) -> list[InferenceResult]:
        """Pictures of finished states. Raises ``ExecutionError`` when one has values that are no numbers."""
        with device_errors():
            latents = torch.cat([state.latents for state in states])
            require_finite(latents)
            pictures = self._vae.decode(latents)
        return [self._result(state.request, picture) for state, picture in zip(states, pictures, strict=True)]

    @torch.inference_mode()
    def preview(self, state: PictureState) -> Image:
        """What the row will become as far as its last step tells, at an eighth of the canvas's sides."""
        latents = state.latents if state.solver.expected is None else state.solver.expected
        with device_errors():
            return self._colours.show(latents[0], state.request.id)

    def _predict(self, states: Sequence[PictureState], solvers: Sequence[RowSolver]) -> Tensor:
        """The denoiser's word on each row, guided where a row asks for it: [rows, 4, h, w]."""
        guided = [i for i, state in enumerate(states) if state.negative is not None]
        order = [*range(len(states)), *guided]
        texts = [state.prompt for state in states]
        texts += [state.negative for state in states if state.negative is not None]
        tokens, mask = pad([text.tokens for text in texts])
        scaled = torch.cat(
            [solver.scaled(state.latents) for state, solver in zip(states, solvers, strict=True)]
        )
        time_ids = torch.tensor([states[i].time_ids for i in order], dtype=self._parts.dtype)
        prediction: Tensor = self._parts.unet(
            scaled[order],
            self._row_values([solvers[i].timestep for i in order]),
            encoder_hidden_states=tokens,
            encoder_attention_mask=mask,
            added_cond_kwargs={
                "text_embeds": torch.stack([text.pooled for text in texts]),
                "time_ids": time_ids.to(self._parts.device),
            },
            return_dict=False,
        )[0]
        if not guided:
            return prediction
        scales = self._row_values([states[i].request.cfg for i in guided])[:, None, None, None]
        toward, away = prediction[guided], prediction[len(states) :]
        prediction = prediction[: len(states)].clone()
        # The product is rounded to the model's dtype, as upstream's is.
        prediction[guided] = away + (scales * (toward - away)).to(away.dtype)
        return prediction

    def _row_values(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).to(self._parts.device)

    def _result(self, request: InferenceRequest, pixels: Tensor) -> InferenceResult:
        """pixels: uint8 [height, width, 3] on the CPU."""
        height, width, _ = pixels.shape
        return InferenceResult(
            id=request.id,
            output=Image(pixels=pixels.numpy().tobytes(), width=width, height=height, digest=request.id),
            model=request.model,
            seed=request.seed,
            steps=request.steps,
            lightning_enabled=self.lightning_enabled,
        )


def _advance(state: PictureState, solver: RowSolver, prediction: Tensor) -> Tensor:
    """The row's latents after ``solver`` took its step."""
    latents = solver.moved(prediction, state.latents)
    return latents if state.kept is None else state.kept.restore(latents, solver)


def _require_plain_loop(parts: Components) -> None:
    unet, vae = parts.unet.config, parts.vae.config
    if unet.in_channels != 4 or unet.addition_embed_type != "text_time":
        raise ValueError("the denoiser takes other inputs than latents, text and sizes")
    if unet.time_cond_proj_dim is not None:
        raise ValueError("guidance as an input of the denoiser is not implemented for this family")
    if vae.get("latents_mean") is not None or vae.get("latents_std") is not None:
        raise ValueError("latents with a mean and deviation of their own are not implemented for this family")
    if parts.solver.order != 1:
        raise ValueError("a solver of higher order takes several forwards a step")
