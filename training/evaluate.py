"""Measures the pocket checkpoint through the product's own pipeline: a table and a contact sheet.

Held-out photographs and held-out wordings only. PSNR is against the exact operation, over values 0 ... 1.
"""

import argparse
import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.loaders.lora_pipeline import QwenImageLoraLoaderMixin
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image as pillow
from PIL import ImageDraw
from safetensors.torch import load_file
from torch import Tensor

from core.request import Image, InferenceRequest, Task
from core.spec import PipelineSpec
from pipelines.options import ModelOptions, Silent
from pipelines.qwen_image import load_edit_plus
from pipelines.registry import catalog
from training.lightning import TARGET as LIGHTNING_FILE
from training.operations import OPERATIONS, blend
from training.pictures import held_out
from training.run import psnr
from training.wording import BLEND, HELD_OUT, UNCHANGED, say

# What the mean is taken over; the table shows the others too.
GOAL = (
    "black and white", "sketch", "warmer", "invert", "flip", "red border", "blur", "brighter", "darker",
    "contrast", "pixelate", "sepia", "night",
)  # fmt: skip
_BATCH = 6
_TURNS = 2  # edits of each photograph, under different wordings


class Editor:
    """The pocket row as the worker runs it, one batch after another."""

    def __init__(self, steps: int, side: int, *, lightning: bool) -> None:
        self.spec: PipelineSpec = catalog("pocket-edit", reference_area=side * side, steps=steps).default
        self._pipeline = load_edit_plus(self.spec, ModelOptions(), Silent())
        self._side = side
        if lightning:
            make_lightning(self._pipeline)

    def edit(self, prompts: Sequence[str], pictures: Sequence[tuple[Tensor, ...]]) -> Tensor:
        """Edited pictures [n, 3, side, side] in 0 ... 1; request i has seed i."""
        requests = [
            self._request(i, prompt, images)
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
            decoded = vae.decode(vae.encode(pictures * 2 - 1), (self._side, self._side))
        rebuilt: Tensor = decoded.permute(0, 3, 1, 2).float() / 255
        return rebuilt

    def _request(self, number: int, prompt: str, images: tuple[Tensor, ...]) -> InferenceRequest:
        return self.spec.request(
            id=str(number),
            task=Task.EDIT,
            prompt=prompt,
            images=tuple(_image(picture) for picture in images),
            width=self._side,
            height=self._side,
            seed=number,
        )

    def _run(self, requests: Sequence[InferenceRequest]) -> list[Tensor]:
        states = self._pipeline.prepare(requests)
        while not states[0].finished:
            self._pipeline.step(states)
        rows = []
        for result in self._pipeline.decode(states):
            assert result.image is not None
            pixels = np.frombuffer(result.image.pixels, np.uint8).reshape(self._side, self._side, 3)
            rows.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255)
        return rows


def make_lightning(pipeline: Any) -> None:
    """Fuse the LoRA, read as diffusers reads lightx2v's files, and take the schedule it was trained for."""
    parts = pipeline._parts
    weights = QwenImageLoraLoaderMixin.lora_state_dict(load_file(LIGHTNING_FILE))
    parts.transformer.load_lora_adapter(weights)
    layers = sum(hasattr(module, "lora_A") for module in parts.transformer.modules())
    assert layers == len(weights) // 2, "not every layer of the LoRA was found"
    parts.transformer.fuse_lora()
    parts.transformer.unload_lora()
    config = dict(parts.solver.config) | {
        "base_shift": math.log(3),
        "max_shift": math.log(3),
        "shift_terminal": None,
    }
    pipeline._parts = replace(parts, solver=FlowMatchEulerDiscreteScheduler.from_config(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--side", type=int, default=256, choices=(128, 256))
    parser.add_argument("--lightning", action="store_true", help="with the LoRA and its schedule")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sheet", type=Path, default=Path("out/pocket-eval.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    editor = Editor(arguments.steps, arguments.side, lightning=arguments.lightning)
    photos = held_out(arguments.side)
    rebuilt = editor.rebuild(photos)
    autoencoder = [psnr(a, b) for a, b in zip(rebuilt, photos, strict=True)]
    print(
        f"autoencoder at {arguments.side}x{arguments.side}: {np.mean(autoencoder):.2f} dB, "
        f"worst {min(autoencoder):.2f}"
    )
    print(
        f"{arguments.steps} steps, {len(photos)} held-out photographs x {_TURNS} of 4 held-out wordings; "
        "dB against the exact operation"
    )
    print(f"{'edit':16} {'edit':>6} {'worst':>6} {'input':>6} {'gain':>6} {'limit':>6}")
    rows = [("photograph", photos), ("autoencoder", rebuilt)]
    means = {}
    for name in (*OPERATIONS, BLEND):
        means[name] = _row(editor, name, photos, rows)
    goal = [means[name] for name in GOAL]
    print(f"mean of the {len(goal)} edits asked for: {np.mean(goal):.2f} dB, least {min(goal):.2f}")
    _strengths(editor, photos)
    _duration(editor, photos)
    arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
    _sheet(rows).save(arguments.sheet)
    print(f"contact sheet (edit over exact operation): {arguments.sheet}")


def _row(editor: Editor, name: str, photos: Tensor, sheet: list[tuple[str, Tensor]]) -> float:
    others = photos.roll(1, 0)
    exact = blend(photos, others) if name == BLEND else OPERATIONS[name](photos, 1.0)
    inputs = [(a, b) if name == BLEND else (a,) for a, b in zip(photos, others, strict=True)]
    edited = []
    texts = HELD_OUT.get(name) or _coloured_texts(name)
    for turn in range(_TURNS):
        prompts = [texts[(i + turn) % len(texts)] for i in range(len(photos))]
        edited.append(editor.edit(prompts, inputs))
    each = [psnr(a, b) for batch in edited for a, b in zip(batch, exact, strict=True)]
    unedited = np.mean([min(psnr(a, b), 99.0) for a, b in zip(photos, exact, strict=True)])
    limit = np.mean([psnr(a, b) for a, b in zip(editor.rebuild(exact), exact, strict=True)])
    mean = float(np.mean(each))
    print(
        f"{name:16} {mean:6.2f} {min(each):6.2f} {unedited:6.2f} {mean - unedited:+6.2f} {limit:6.2f}",
        flush=True,
    )
    sheet += [(f"{name}: {', '.join(texts)}", edited[0]), (f"{name}, exact", exact)]
    return mean


def _coloured_texts(name: str) -> tuple[str, ...]:
    return tuple(text.replace("red", name.split()[0]) for text in HELD_OUT["red border"])


def _strengths(editor: Editor, photos: Tensor) -> None:
    """Training texts here: how strongly is a word of the grammar, not of a wording."""
    for name in ("blur", "brighter", "darker", "contrast", "warmer", "cooler"):
        line = []
        for strength in (0.5, 1.5):
            draw = random.Random(0)
            prompts = [say(name, strength, draw).text for _ in photos]
            edited = editor.edit(prompts, [(photo,) for photo in photos])
            own, plain = (OPERATIONS[name](photos, s) for s in (strength, 1.0))
            line.append(f"x{strength} {psnr(edited, own):.2f} (if x1.0 were meant {psnr(edited, plain):.2f})")
        print(f"strength of {name:10} {'   '.join(line)}")


def _duration(editor: Editor, photos: Tensor) -> None:
    spent = []
    for i in range(4):
        photo = photos[i % len(photos)] * 0.99 + 0.001 * i  # new to the caches
        started = time.process_time()
        editor.edit([f"{HELD_OUT[UNCHANGED][0]} {i}"], [(photo,)])
        spent.append(time.process_time() - started)
    print(f"one edit: {min(spent):.2f} s of CPU time at least, {np.median(spent):.2f} s in the middle")


def _image(picture: Tensor) -> Image:
    pixels = (picture * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return Image(pixels=pixels.tobytes(), width=picture.shape[2], height=picture.shape[1])


def _sheet(rows: list[tuple[str, Tensor]]) -> pillow.Image:
    side = 128
    sheet = pillow.new("RGB", (side * len(rows[0][1]), (side + 12) * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for y, (title, pictures) in enumerate(rows):
        pen.text((2, y * (side + 12)), title, fill="black")
        for x, picture in enumerate(pictures):
            pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            sheet.paste(pillow.fromarray(pixels).resize((side, side)), (x * side, y * (side + 12) + 12))
    return sheet


if __name__ == "__main__":
    main()
