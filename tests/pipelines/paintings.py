"""Requests for the SDXL family, its solvers, and what the stock pipelines make of the same requests."""

from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint import (
    StableDiffusionXLInpaintPipeline,
)
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from PIL import Image as pillow
from PIL import ImageDraw

from core.request import Image, InferenceRequest, Task
from core.spec import PipelineSpec
from pipelines.pocket.sdxl import SOLVER
from pipelines.sdxl import StableDiffusionXL
from tests.pipelines.edits import picture, run_to_end

PROMPTS = (
    "a cat on a beach, cinematic photo",
    "a red house in the snow, with a golden lamp by the door, painting in the style of winter",
    "night",
    "portrait of a racoon wearing an intricate italian garment!",
)

# The solvers of SDXL base, Turbo and Lightning, and one that fine-tuned checkpoints come with.
SOLVERS: dict[str, Any] = {
    "euler": EulerDiscreteScheduler.from_config(SOLVER),
    "turbo": EulerAncestralDiscreteScheduler.from_config(SOLVER, timestep_spacing="trailing"),
    "lightning": EulerDiscreteScheduler.from_config(SOLVER, timestep_spacing="trailing"),
    "dpm++": DPMSolverMultistepScheduler.from_config(SOLVER),
}


def paint(spec: PipelineSpec, number: int = 0, **wishes: Any) -> InferenceRequest:
    """A picture of a text alone, or of a picture when there is one; 4 steps at 64x64."""
    defaults: dict[str, Any] = {
        "id": f"picture-{number}",
        "task": Task.EDIT if "images" in wishes else Task.GENERATE,
        "prompt": PROMPTS[number % len(PROMPTS)],
        "width": 64,
        "height": 64,
        "steps": 4,
        "seed": 100 + number,
    }
    return spec.request(**(defaults | wishes))


def disc(width: int = 96, height: int = 96) -> Image:
    """A mask: white inside."""
    canvas = pillow.new("RGB", (width, height))
    ImageDraw.Draw(canvas).ellipse((width // 5, height // 4, width // 2, height - 9), fill="white")
    return Image(pixels=canvas.tobytes(), width=width, height=height)


SHOWN: dict[str, Any] = {"images": (picture(1),)}
MASKED: dict[str, Any] = SHOWN | {"mask": disc()}


def finished(pipeline: StableDiffusionXL, request: InferenceRequest) -> torch.Tensor:
    """Final latents of a request that runs alone."""
    states = pipeline.prepare([request])
    run_to_end(pipeline, states)
    return states[0].latents


class Stock:
    """The three pipelines of diffusers over one set of models."""

    def __init__(self, checkpoint: Path) -> None:
        self.text = StableDiffusionXLPipeline.from_pretrained(
            checkpoint, dtype=torch.float32, add_watermarker=False
        )
        parts = self.text.components
        self._picture = StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)
        self._mask = StableDiffusionXLInpaintPipeline(**parts, add_watermarker=False)
        for pipeline in (self.text, self._picture, self._mask):
            pipeline.set_progress_bar_config(disable=True)

    def run(self, solver: Any, request: InferenceRequest, output_type: str = "latent") -> Any:
        size: dict[str, Any] = {"width": request.canvas[0], "height": request.canvas[1]}
        if not request.images:
            pipeline, inputs = self.text, size
        elif request.mask is None:  # this one takes its size from the picture
            picture = _pillow(request.images[0]).resize(request.canvas, pillow.Resampling.LANCZOS)
            pipeline, inputs = self._picture, {"image": picture, "strength": request.strength}
        else:
            pictures = {"image": _pillow(request.images[0]), "mask_image": _pillow(request.mask)}
            pipeline, inputs = self._mask, size | pictures | {"strength": request.strength}
        pipeline.scheduler = solver
        return pipeline(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            guidance_scale=request.cfg,
            num_inference_steps=request.steps,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type=output_type,
            **inputs,
        ).images


def _pillow(image: Image) -> pillow.Image:
    return pillow.frombytes("RGB", image.size, image.pixels)
