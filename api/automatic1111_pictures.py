"""``txt2img`` and ``img2img`` as AUTOMATIC1111's web UI words them. It knows no other of its addresses."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import orjson
import pybase64

from api.asking import ask_with_pictures
from api.automatic1111_fields import ImageToImage, TextToImage, wishes_of
from api.body import parse_json
from api.dialect import Answer, Arrival, Services
from api.errors import message_of, status_of
from api.intake import ImageSource
from api.settings_text import SAMPLER, infotext
from core.errors import ServingError
from core.request import SEED_MAX, InferenceRequest, Task
from core.result import InferenceResult

_WORDS: Final = {"cfg": "cfg_scale", "images": "init_images", "strength": "denoising_strength"}


@dataclass(frozen=True, slots=True)
class WebUiCall:
    """without_effect: fields that were sent and not used, with the reason."""

    requests: tuple[InferenceRequest, ...]
    batch_size: int
    without_effect: Mapping[str, str]


class TextToImageDialect:
    """See ``api.dialect.Dialect``."""

    def __init__(self, services: Services, model_of: Callable[[Arrival, Task], str]) -> None:
        """model_of: the model of a caller's calls that name none."""
        self._services = services
        self._model_of = model_of

    def read(self, body: bytes, arrival: Arrival) -> object:
        return parse_json(body)

    async def parse(self, content: object, arrival: Arrival) -> WebUiCall:
        wishes, without_effect = wishes_of(TextToImage, content)
        if wishes.denoising_strength is not None:
            without_effect["denoising_strength"] = "there is no picture to redraw"
        return await self._call(wishes, without_effect, arrival, Task.GENERATE)

    async def render(self, call: WebUiCall, results: Sequence[InferenceResult]) -> Answer:
        codec = self._services.intake.codec
        pairs = list(zip(call.requests, results, strict=True))
        pictures = await asyncio.gather(
            *(codec.finish(partial(self._picture, request, result)) for request, result in pairs)
        )
        rest = orjson.dumps(answer(call, results))[1:]
        return Answer(
            await codec.finish(
                lambda: b"".join((b'{"images":["', b'","'.join(pictures), b'"],', rest)),
            )
        )

    def refuse(self, error: ServingError, arrival: Arrival) -> Answer:
        return refuse(error, arrival)

    def _picture(self, request: InferenceRequest, result: InferenceResult) -> bytes:
        text: bytes = pybase64.b64encode(self._services.intake.file(request, result, "png"))
        return text

    async def _call(
        self,
        wishes: TextToImage,
        without_effect: Mapping[str, str],
        arrival: Arrival,
        task: Task,
        sources: Sequence[ImageSource] = (),
        mask: ImageSource | None = None,
        strength: float | None = None,
    ) -> WebUiCall:
        pictures = wishes.pictures
        spec = self._services.catalog.get(wishes.checkpoint or self._model_of(arrival, task))
        request = await ask_with_pictures(
            partial(
                spec.request,
                id=arrival.id,
                task=task,
                prompt=wishes.prompt,
                negative_prompt=wishes.negative_prompt or None,  # "" is the web UI's default, not a wish
                width=wishes.width or None,
                height=wishes.height or None,
                steps=wishes.steps,
                cfg=wishes.cfg_scale,
                seed=wishes.seed,
                strength=strength,
                timeout=self._services.options.timeout,
            ),
            self._services.intake,
            sources,
            mask,
            arrived=arrival.started,
            words=_WORDS,
        )
        # As the web UI does: each further picture has the next seed.
        requests = [
            replace(request, id=f"{request.id}-{at}", seed=(request.seed + at) % (SEED_MAX + 1))
            for at in range(pictures)
        ]
        return WebUiCall(tuple(requests), wishes.batch_size, without_effect)


class ImageToImageDialect(TextToImageDialect):
    """See ``api.dialect.Dialect``."""

    async def parse(self, content: object, arrival: Arrival) -> WebUiCall:
        wishes, without_effect = wishes_of(ImageToImage, content)
        spec = self._services.catalog.get(wishes.checkpoint or self._model_of(arrival, Task.EDIT))
        strength = wishes.denoising_strength
        if strength is not None and spec.strength is None:
            # Front ends send it with every call, so a refusal would keep them from such models.
            without_effect["denoising_strength"] = (
                f"{spec.name} takes no strength; say how much in the prompt"
            )
            strength = None
        sources = [ImageSource(text, f"init_images.{at}") for at, text in enumerate(wishes.init_images)]
        mask = ImageSource(wishes.mask, "mask") if wishes.mask else None
        return await self._call(wishes, without_effect, arrival, Task.EDIT, sources, mask, strength)


def answer(call: WebUiCall, results: Sequence[InferenceResult]) -> dict[str, Any]:
    """Everything of an answer but ``images``."""
    first = call.requests[0]
    count = len(call.requests)
    negative = first.negative_prompt or ""
    shared = {
        "prompt": first.prompt,
        "negative_prompt": negative,
        "seed": results[0].seed,
        "width": first.size[0],
        "height": first.size[1],
        "sampler_name": SAMPLER,
        "cfg_scale": first.cfg,
        "steps": results[0].steps,
        "batch_size": call.batch_size,
        "denoising_strength": first.strength,
    }
    info = {
        **shared,
        "all_prompts": [first.prompt] * count,
        "all_negative_prompts": [negative] * count,
        "all_seeds": [result.seed for result in results],
        "sd_model_name": results[0].model,
        "infotexts": [infotext(*pair) for pair in zip(call.requests, results, strict=True)],
        "index_of_first_image": 0,
        "without_effect": dict(call.without_effect),
    }
    parameters = {
        **shared,
        "n_iter": count // call.batch_size,
        "override_settings": {"sd_model_checkpoint": results[0].model},
    }
    return {"parameters": parameters, "info": orjson.dumps(info).decode()}


def refuse(error: ServingError, arrival: Arrival) -> Answer:
    """``detail`` is where the web UI's clients look; ``error`` and ``code`` are as everywhere here."""
    message = message_of(error)
    body = {"error": message, "detail": message, "code": error.code}
    return Answer(
        orjson.dumps(body if error.param is None else body | {"param": error.param}), status_of(error)
    )
