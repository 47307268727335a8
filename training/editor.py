"""The pocket checkpoint as the worker runs it, for measuring: tensors in, tensors out, nothing of HTTP."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.request import Image, InferenceRequest, Task
from core.spec import PipelineSpec
from pipelines.lightning import few_step_solver
from pipelines.options import ModelOptions, Silent
from pipelines.qwen_image import load_edit_plus
from pipelines.registry import catalog

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
        few_steps = {"enabled": lightning and lora}
        rows = catalog("pocket-edit", reference_area=size[0] * size[1], lightning=few_steps)
        self.spec: PipelineSpec = rows.default
        self.size = size
        self._pipeline = load_edit_plus(self.spec, options, Silent())
        if lightning and not lora:
            parts = self._pipeline._parts
            self._pipeline._parts = replace(parts, solver=few_step_solver(parts.solver))

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


def _image(picture: Tensor) -> Image:
    pixels = (picture * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return Image(pixels=pixels.tobytes(), width=picture.shape[2], height=picture.shape[1])
