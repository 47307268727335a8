"""Where a request of the SDXL family begins: noise alone, a noised picture, or both under a mask.

What is drawn from a request's generator, and in which order, is that of diffusers'
``pipeline_stable_diffusion_xl{,_img2img,_inpaint}.py``: a seed means the same picture here and there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.request import Image, InferenceRequest
from pipelines.condition_cache import ConditionCache
from pipelines.sdxl_solvers import RowSolver
from pipelines.sdxl_vae import SCALE, PictureVae, to_latent_mask, to_tensor

MOMENTS = "picture_moments"


@dataclass(frozen=True, slots=True)
class Kept:
    """What is put back after every step.

    mask: [1, 1, h, w], 0 where a latent is kept. clean, noise: [1, channels, h, w].
    """

    mask: Tensor
    clean: Tensor
    noise: Tensor

    def restore(self, latents: Tensor, solver: RowSolver) -> Tensor:
        """``latents`` with the kept part as noisy as the rest is before the solver's next step."""
        clean = self.clean if solver.remaining == 0 else solver.noised(self.clean, self.noise)
        return (1 - self.mask) * clean + self.mask * latents


@dataclass(frozen=True, slots=True)
class Start:
    """latents: [1, channels, h, w], in the denoiser's dtype."""

    solver: RowSolver
    latents: Tensor
    kept: Kept | None


class Starter:
    """solver: the model's, copied for each request. channels: of latents."""

    def __init__(
        self,
        vae: PictureVae,
        solver: Any,
        cache: ConditionCache,
        channels: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._vae = vae
        self._solver = solver
        self._cache = cache
        self._channels = channels
        self._device = device
        self._dtype = dtype

    def begin(self, requests: Sequence[InferenceRequest]) -> list[Start]:
        """One start for each request; pictures of all of them, of one canvas, are encoded together."""
        moments = self._moments([request for request in requests if request.images])
        return [self._begin(request, moments) for request in requests]

    def _begin(self, request: InferenceRequest, moments: dict[str, Tensor]) -> Start:
        generator = torch.Generator("cpu").manual_seed(request.seed)
        solver = RowSolver(self._solver, request.steps, request.steps_run, generator)
        if not request.images:
            return Start(solver, solver.noise_alone(self._draw(request, generator)), None)
        lies = moments[request.images[0].digest]
        clean = self._vae.sample(lies, generator)
        noise = self._draw(request, generator)
        if request.mask is None:
            return Start(solver, solver.noised(clean, noise), None)
        whole = request.steps_run == request.steps and request.strength == 1.0
        latents = solver.noise_alone(noise) if whole else solver.noised(clean, noise)
        # Upstream encodes the masked picture too, for models that are shown it, and draws for that here.
        self._vae.sample(lies, generator)
        mask = to_latent_mask(request.mask, request.canvas).to(self._device, self._dtype)
        return Start(solver, latents, Kept(mask, clean, noise))

    def _draw(self, request: InferenceRequest, generator: torch.Generator) -> Tensor:
        """Standard normal values, drawn on the CPU on any machine."""
        width, height = request.canvas
        shape = (1, self._channels, height // SCALE, width // SCALE)
        return torch.randn(shape, generator=generator, dtype=self._dtype).to(self._device)

    def _moments(self, requests: Sequence[InferenceRequest]) -> dict[str, Tensor]:
        """By the picture's digest."""
        pictures: dict[str, Image] = {request.images[0].digest: request.images[0] for request in requests}
        if not pictures:
            return {}
        canvas = requests[0].canvas
        known = {digest: self._cache.get(MOMENTS, (digest, canvas)) for digest in pictures}
        found = {digest: value for digest, value in known.items() if value is not None}
        missing = [digest for digest, value in known.items() if value is None]
        if missing:
            pixels = torch.stack([to_tensor(pictures[digest], canvas) for digest in missing])
            for digest, value in zip(missing, self._vae.encode(pixels), strict=True):
                found[digest] = value.clone()
                self._cache.put(MOMENTS, (digest, canvas), found[digest])
        return found
