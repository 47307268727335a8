"""The pocket checkpoint as the worker runs it, for measuring: tensors in, tensors out, nothing of HTTP."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.loaders.lora_pipeline import QwenImageLoraLoaderMixin
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from torch import Tensor

from core.request import Image, InferenceRequest, Task
from core.spec import PipelineSpec
from pipelines.options import ModelOptions, Silent
from pipelines.qwen_image import load_edit_plus
from pipelines.registry import catalog

LORA = Path(__file__).parent.parent / "pipelines/pocket/weights/lightning-4steps.safetensors"
_BATCH = 6
_OPTIONS = ModelOptions()


class Editor:
    """The row ``pocket-edit``, one batch after another.

    size: (width, height) of the answer. lightning: with the schedule of few steps, and with the LoRA that was
    trained for it unless ``lora`` is false.
    """

    def __init__(
        self,
        size: tuple[int, int] = (256, 256),
        *,
        lightning: bool = False,
        lora: bool = True,
        options: ModelOptions = _OPTIONS,
    ) -> None:
        self.spec: PipelineSpec = catalog("pocket-edit", reference_area=size[0] * size[1]).default
        self.size = size
        self._pipeline = load_edit_plus(self.spec, options, Silent())
        if lightning:
            make_lightning(self._pipeline, lora=lora)

    def edit(self, prompts: Sequence[str], pictures: Sequence[tuple[Tensor, ...]], steps: int = 4) -> Tensor:
        """Edited pictures [n, 3, height, width] in 0 ... 1; request i has seed i."""
        requests = [
            self._request(i, prompt, images, steps)
            for i, (prompt, images) in enumerate(zip(prompts, pictures, strict=True))
        ]
        edited = [
            row
            for start in range(0, len(requests), _BATCH)
            for row in self._run(requests[start : start + _BATCH])
        ]
        return torch.stack(edited)

    def rebuild(self, pictures: Tensor) -> Tensor:
        """What the autoencoder alone makes of pictures."""
        vae: Any = self._pipeline._vae
        with torch.inference_mode():
            decoded = vae.decode(vae.encode(pictures * 2 - 1), self.size)
        rebuilt: Tensor = decoded.permute(0, 3, 1, 2).float() / 255
        return rebuilt

    def _request(self, number: int, prompt: str, images: tuple[Tensor, ...], steps: int) -> InferenceRequest:
        return self.spec.request(
            id=str(number),
            task=Task.EDIT,
            prompt=prompt,
            images=tuple(_image(picture) for picture in images),
            width=self.size[0],
            height=self.size[1],
            steps=steps,
            seed=number,
        )

    def _run(self, requests: Sequence[InferenceRequest]) -> list[Tensor]:
        states = self._pipeline.prepare(requests)
        while not states[0].finished:
            self._pipeline.step(states)
        rows = []
        for result in self._pipeline.decode(states):
            assert result.image is not None
            pixels = np.frombuffer(result.image.pixels, np.uint8).reshape(self.size[1], self.size[0], 3)
            rows.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255)
        return rows


def make_lightning(pipeline: Any, *, lora: bool = True) -> None:
    """Take the schedule of few steps, and fuse the LoRA that was trained for it."""
    parts = pipeline._parts
    if lora:
        fuse(parts.transformer, load_file(LORA))
    # Source: the scheduler's configuration on the model cards of lightx2v's Lightning files.
    config = dict(parts.solver.config) | {
        "base_shift": math.log(3),
        "max_shift": math.log(3),
        "shift_terminal": None,
    }
    pipeline._parts = replace(parts, solver=FlowMatchEulerDiscreteScheduler.from_config(config))


def fuse(transformer: Any, weights: dict[str, Tensor]) -> None:
    """Add a LoRA to the weights for good, read as diffusers reads lightx2v's files.

    Raises ``ValueError`` unless every layer of the file found its place: keys that are not recognised load
    nothing, silently.
    """
    wanted = sum(name.endswith("lora_up.weight") for name in weights)
    found = QwenImageLoraLoaderMixin.lora_state_dict(dict(weights))
    if any("lora_A" in name for name in found):
        transformer.load_lora_adapter(found)
    layers = sum(hasattr(module, "lora_A") for module in transformer.modules())
    if layers != wanted or not layers:
        raise ValueError(f"{layers} of the LoRA's {wanted} layers found their place")
    transformer.fuse_lora()
    transformer.unload_lora()


def _image(picture: Tensor) -> Image:
    pixels = (picture * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return Image(pixels=pixels.tobytes(), width=picture.shape[2], height=picture.shape[1])
