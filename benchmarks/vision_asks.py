"""What the vision benchmarks and the soak test ask over HTTP, and whether an answer is the asker's own.

It knows no server: an answer is compared with another of the same request.
"""

import base64
import io
import json
import random
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

SLUGS = ("sam3", "grounding-dino", "depth-anything", "dinov3")
WORDS = ("a cat", "red car", "tree", "lamp by the road", "small dog", "window", "blue chair", "bottle")
SIZES = ((96, 72), (72, 96), (80, 80))
ALIKE = 0.01  # of what a value can be; rows that share a forward are computed by other kernels than one alone


@dataclass(frozen=True)
class Call:
    """status: what it has to be answered with."""

    slug: str
    body: bytes
    status: int = 200

    @property
    def path(self) -> str:
        return f"/inference/{self.slug}"


def picture(number: int, size: tuple[int, int], kind: str = "PNG") -> str:
    """base64 of smooth random colours."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    out = io.BytesIO()
    Pillow.fromarray(coarse).resize(size, Pillow.Resampling.BICUBIC).save(out, kind)
    return base64.b64encode(out.getvalue()).decode()


def asks(slug: str, number: int) -> dict[str, Any]:
    """Of a model, beside the picture; low thresholds, so that something is found and can be misrouted."""
    words = [WORDS[number % len(WORDS)], WORDS[(number + 3) % len(WORDS)]]
    match slug:
        case "sam3":
            return {"prompts": words[: number % 2 + 1], "threshold": 0.05}
        case "grounding-dino":
            return {"prompts": words, "box_threshold": 0.05, "text_threshold": 0.05}
        case "dinov3":
            return {"encoding": "base64"}
    return {}


def call(slug: str, number: int) -> Call:
    shown = picture(number, SIZES[number % len(SIZES)])
    return Call(slug, json.dumps({"images": [shown], **asks(slug, number)}).encode())


def described(slug: str, *, shown: int, words: int, size: tuple[int, int], **more: Any) -> Call:
    """As the service's first clients ask: a JPEG, the usual thresholds, the usual form of an answer.

    shown: number of the picture. words: of what is looked for.
    """
    fields = {} if slug not in ("sam3", "grounding-dino") else {"prompts": asks(slug, words)["prompts"]}
    return Call(slug, json.dumps({"images": [picture(shown, size, "JPEG")], **fields, **more}).encode())


def faults() -> list[Call]:
    """Refused at the edge, or on the device among others: texts that only a tokenizer can judge."""
    shown, long = picture(0, SIZES[0]), " ".join("qx7" for _ in range(120))

    def bad(slug: str, status: int, **fields: Any) -> Call:
        return Call(slug, json.dumps({"images": [shown], **asks(slug, 0), **fields}).encode(), status)

    return [
        bad("sam3", 422, prompts=[long]),
        bad("grounding-dino", 422, prompts=[long]),
        bad("sam3", 422, prompts=[]),
        bad("depth-anything", 400, images=[base64.b64encode(b"no picture").decode()]),
        bad("dinov3", 422, normalise=True),
        Call("dinov3", b"{", 400),
    ]


def distinct(each: int) -> list[Call]:
    """``each`` of every model, no two alike, and the faulty ones."""
    return [call(slug, number) for slug in SLUGS for number in range(each)] + faults()


def mixed(calls: list[Call], count: int, seed: int = 0) -> list[int]:
    """Indices into ``calls`` in an order of no pattern, each as often as the others."""
    order = [at % len(calls) for at in range(count)]
    random.Random(seed).shuffle(order)
    return order


def unlike(call: Call, answer: bytes, other: bytes) -> float:
    """How far two answers to one request are apart, as a part of what is possible; infinite: in shape."""
    if call.status != 200:
        return 0.0 if _refusal(answer) == _refusal(other) else float("inf")
    one, two = parts(call.slug, json.loads(answer)), parts(call.slug, json.loads(other))
    if [part.shape for part in one] != [part.shape for part in two]:
        return float("inf")
    return max((_apart(a, b) for a, b in zip(one, two, strict=True)), default=0.0)


def parts(slug: str, answer: Any) -> list[NDArray[Any]]:
    """Everything that was found, as arrays: bool for masks, all others between about -1 and 1."""
    if slug == "sam3":
        (prompts,) = answer["results"]
        found = []
        for prompt in prompts:
            result = prompt["result"]
            masks = [_mask(one) for one in result["masks_rle"]]
            found += [np.array(result["scores"]), np.array(result["boxes"]).ravel() / 96, *masks]
        return found
    if slug == "grounding-dino":
        (result,) = answer["results"]
        return [np.array(result["scores"]), np.array(result["boxes"]).ravel() / 96]
    if slug == "depth-anything":
        with Pillow.open(io.BytesIO(base64.b64decode(answer["depth_data"]))) as grey:
            return [np.asarray(grey, np.float32) / 255]
    tokens = np.frombuffer(base64.b64decode(answer["features"]["last_hidden_state"]), "<f4")
    return [tokens / 4]  # of unit gain


def _mask(written: Any) -> NDArray[np.bool_]:
    runs = np.frombuffer(zlib.decompress(base64.b64decode(written["counts"])), "<u4")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


def _apart(one: NDArray[Any], other: NDArray[Any]) -> float:
    if one.dtype == np.bool_:
        return float(np.mean(one != other))
    return float(np.abs(one - other).max(initial=0.0))


def _refusal(answer: bytes) -> Any:
    """Without what names the one request."""
    return {name: value for name, value in json.loads(answer).items() if name != "request_id"}
