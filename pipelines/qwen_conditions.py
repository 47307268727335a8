"""What a request's texts and pictures become, once for equal content. For the Qwen-Image family."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image as pillow
from torch import Tensor

from core.errors import RequestError
from core.request import Image, InferenceRequest, Size
from pipelines.condition_cache import ConditionCache
from pipelines.qwen_text import Ask, PromptEncoder
from pipelines.qwen_vae import SCALE, PictureVae

PATCH = 2 * SCALE  # pixels per transformer token along one side
PROMPTS, REFERENCES = CACHED = ("prompt_embeddings", "reference_latents")
# Rows of the position table that text shares with pictures. Source: ``QwenEmbedRope.__init__``.
_POSITIONS = 4096


class PictureKey(NamedTuple):
    """Names pixels by content: equal keys mean equal pixels at an equal size."""

    digest: str
    fitted: Size


@dataclass(frozen=True, slots=True)
class Conditions:
    """What steers one row: prompt, negative [length, width]; references, canvas [tokens, 64].

    canvas: the first picture at the size of the canvas, for a request with a mask.
    """

    prompt: Tensor
    negative: Tensor | None
    references: Tensor
    canvas: Tensor | None


class ConditionEncoder:
    """Encodes what the cache does not hold, for all requests of a call together."""

    def __init__(self, prompts: PromptEncoder, vae: PictureVae, cache: ConditionCache) -> None:
        self._prompts = prompts
        self._vae = vae
        self._cache = cache

    def encode(self, requests: Sequence[InferenceRequest]) -> list[Conditions]:
        """Conditions of each request; negatives only of the guided.

        Raises ``RequestError`` ``invalid_parameter`` when a text, or text and pictures together, are too
        long for the model.
        """
        embeddings = self._embed(requests)
        latents = self._encode_pictures(requests)
        answer = []
        for request in requests:
            prompt, negative = _asks(request)
            rows = Conditions(
                prompt=embeddings[prompt],
                negative=embeddings[negative] if negative is not None else None,
                references=torch.cat(
                    [self._vae.nothing, *(latents[key] for key in _reference_keys(request))]
                ),
                canvas=latents[_canvas_key(request)] if request.mask is not None else None,
            )
            _refuse_over_long(request, rows)
            answer.append(rows)
        return answer

    def _embed(self, requests: Sequence[InferenceRequest]) -> dict[Ask, Tensor]:
        asks = dict.fromkeys(ask for request in requests for ask in _asks(request) if ask is not None)
        known = {ask: self._cache.get(PROMPTS, ask) for ask in asks}
        missing = [ask for ask, value in known.items() if value is None]
        found = {ask: value for ask, value in known.items() if value is not None}
        if missing:
            needed = {key for ask in missing for key in ask.pictures}
            pictures = {
                key: fit(image, key.fitted)
                for request in requests
                for key, image in zip(_condition_keys(request), request.images, strict=True)
                if key in needed
            }
            for ask, value in zip(missing, self._prompts.encode(missing, pictures), strict=True):
                self._cache.put(PROMPTS, ask, value)
                found[ask] = value
        return found

    def _encode_pictures(self, requests: Sequence[InferenceRequest]) -> dict[PictureKey, Tensor]:
        images = {
            key: image
            for request in requests
            for key, image in zip(_reference_keys(request), request.images, strict=True)
        }
        images |= {_canvas_key(r): r.images[0] for r in requests if r.mask is not None}
        known = {key: self._cache.get(REFERENCES, key) for key in images}
        found = {key: value for key, value in known.items() if value is not None}
        missing: dict[Size, list[PictureKey]] = {}
        for key, value in known.items():
            if value is None:
                missing.setdefault(key.fitted, []).append(key)
        for keys in missing.values():
            pixels = torch.stack([_to_tensor(fit(images[key], key.fitted)) for key in keys])
            for key, latents in zip(keys, self._vae.encode(pixels), strict=True):
                found[key] = latents.clone()
                self._cache.put(REFERENCES, key, found[key])
        return found


def _asks(request: InferenceRequest) -> tuple[Ask, Ask | None]:
    keys = _condition_keys(request)
    prompt = Ask(request.prompt, keys, "prompt")
    return prompt, Ask(request.negative_prompt or " ", keys, "negative_prompt") if request.guided else None


def _condition_keys(request: InferenceRequest) -> tuple[PictureKey, ...]:
    return _keys(request.images, request.condition_sizes)


def _reference_keys(request: InferenceRequest) -> tuple[PictureKey, ...]:
    return _keys(request.images, request.reference_sizes)


def _canvas_key(request: InferenceRequest) -> PictureKey:
    return PictureKey(request.images[0].digest, request.canvas)


def _keys(images: Sequence[Image], sizes: Sequence[Size]) -> tuple[PictureKey, ...]:
    return tuple(PictureKey(image.digest, size) for image, size in zip(images, sizes, strict=True))


def fit(image: Image, size: Size) -> pillow.Image:
    """Source: ``VaeImageProcessor.resize`` with its default filter."""
    picture = pillow.frombytes("RGB", image.size, image.pixels)
    return picture.resize(size, pillow.Resampling.LANCZOS)


def _to_tensor(picture: pillow.Image) -> Tensor:
    """float32 [3, height, width] in -1 ... 1. Source: ``VaeImageProcessor.preprocess``."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return 2.0 * (pixels.float() / 255.0) - 1.0


def _refuse_over_long(request: InferenceRequest, rows: Conditions) -> None:
    """Text is placed after the largest picture's half side in one table of positions."""
    sides = [side // PATCH for size in (request.canvas, *request.reference_sizes) for side in size]
    longest = max(len(rows.prompt), 0 if rows.negative is None else len(rows.negative))
    if longest + max(sides) // 2 > _POSITIONS:
        raise RequestError(
            "invalid_parameter",
            f"prompt and images make {longest} tokens of text, over the limit of "
            f"{_POSITIONS - max(sides) // 2}; shorten the prompt, send fewer images or lower CONDITION_AREA",
            param="prompt",
        )
