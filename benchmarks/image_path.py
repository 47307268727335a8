"""(e) CPU time around the model of one 1024 x 1024 edit, by stage: ours against plain FastAPI and Pillow.

Each path gets the same JSON body (a photo-like picture as PNG in base64) and answers with the same
picture as PNG in base64; the model between is left out. One thread, its CPU time, the median of rounds.
The plain path is what a first version of such a server looks like: a pydantic model, the base64 module,
``Image.open(...).convert("RGB")``, ``save("PNG")``, ``JSONResponse``.

Run: ``python -m benchmarks.image_path``. Exits 1 when the target is missed.
"""

import argparse
import base64
import io
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import orjson
import pybase64
from PIL import Image as Pillow
from pydantic import BaseModel
from starlette.responses import JSONResponse  # FastAPI's own

from api.body import parse_json
from api.flat import unwrap
from api.flat_fields import FlatInput
from api.images import ImageLimits, decode, encode
from api.intake import from_base64

SIDE = 1024
TARGET = 0.15
LIMITS = ImageLimits()
STAGES = ("parse JSON", "decode base64", "decode image", "encode image", "encode base64", "response")


def photograph() -> bytes:
    """Smooth areas, edges and sensor noise: compresses as photographs do (PNG to about two thirds)."""
    random = np.random.default_rng(0)
    coarse = random.normal(128, 60, (24, 24, 3)).clip(0, 255).astype(np.uint8)
    scene = Pillow.fromarray(coarse).resize((SIDE, SIDE), Pillow.Resampling.BICUBIC)
    pixels = np.asarray(scene).astype(np.float64)
    for _ in range(40):
        x, y, w, h = random.integers(0, SIDE, 4)
        pixels[y : y + h // 4, x : x + w // 4] += random.normal(0, 25, 3)
    pixels += random.normal(0, 4, pixels.shape)
    out = io.BytesIO()
    Pillow.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


class PlainInput(BaseModel):
    prompt: str
    image_base64: str
    seed: int | None = None


class PlainBody(BaseModel):
    input: PlainInput


def plain(body: bytes) -> tuple[list[float], bytes]:
    clock = Clock()
    wishes = PlainBody.model_validate(json.loads(body)).input
    clock.lap()
    data = base64.b64decode(wishes.image_base64)
    clock.lap()
    picture = Pillow.open(io.BytesIO(data)).convert("RGB")
    clock.lap()
    out = io.BytesIO()
    picture.save(out, format="PNG")
    clock.lap()
    text = base64.b64encode(out.getvalue()).decode()
    clock.lap()
    response = JSONResponse({"image": text, "prompt": wishes.prompt, "seed": wishes.seed})
    clock.lap()
    return clock.laps, bytes(response.body)


def ours(body: bytes) -> tuple[list[float], bytes]:
    clock = Clock()
    wishes = FlatInput.model_validate(unwrap(parse_json(body)))
    clock.lap()
    assert wishes.image_base64 is not None
    data = from_base64(wishes.image_base64, LIMITS)
    clock.lap()
    image = decode(data, LIMITS)
    clock.lap()
    file = encode(image, "png", image.size)
    clock.lap()
    text = pybase64.b64encode(file)
    clock.lap()
    rest = orjson.dumps({"prompt": wishes.prompt, "seed": wishes.seed})
    response = b"".join((b'{"image":"', text, b'",', rest[1:]))
    clock.lap()
    return clock.laps, response


class Clock:
    """CPU seconds of this thread between laps."""

    def __init__(self) -> None:
        self.laps: list[float] = []
        self._last = time.thread_time()

    def lap(self) -> None:
        now = time.thread_time()
        self.laps.append(now - self._last)
        self._last = now


def measure(path: Callable[[], tuple[list[float], bytes]], rounds: int) -> tuple[list[float], bytes]:
    """Milliseconds by stage."""
    _, response = path()
    runs = [path()[0] for _ in range(rounds)]
    return [median(run[stage] for run in runs) * 1000 for stage in range(len(STAGES))], response


def pixels_of(response: bytes) -> bytes:
    answer: dict[str, Any] = json.loads(response)
    with Pillow.open(io.BytesIO(base64.b64decode(answer["image"]))) as picture:
        return picture.tobytes()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=7)
    options = arguments.parse_args()
    data = photograph()
    wishes = {"prompt": "make it pop", "image_base64": base64.b64encode(data).decode(), "seed": 7}
    body = json.dumps({"input": wishes}).encode()
    plain_ms, plain_response = measure(partial(plain, body), options.rounds)
    ours_ms, our_response = measure(partial(ours, body), options.rounds * 3)
    assert pixels_of(plain_response) == pixels_of(our_response), "the two paths disagree about the picture"

    print(f"{SIDE} x {SIDE} photo-like PNG of {len(data) / 1e6:.2f} MB in, PNG out")
    print("CPU-ms a request on one thread")
    print("stage          plain    ours")
    for stage, before, after in zip(STAGES, plain_ms, ours_ms, strict=True):
        print(f"{stage:13}  {before:6.2f}  {after:6.2f}")
    share = sum(ours_ms) / sum(plain_ms)
    print(f"{'all':13}  {sum(plain_ms):6.2f}  {sum(ours_ms):6.2f}   share {share:.3f}, target {TARGET}")
    print(f"{'bytes out':13}  {len(plain_response) / 1e6:5.2f}M  {len(our_response) / 1e6:5.2f}M")
    if share > TARGET:
        print("MISSED")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
