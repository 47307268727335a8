"""OpenAI's answers to a request for pictures: one object, or events while the work goes on."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
import pybase64

from api.dialect import Services
from api.images import ImageFormat, encode
from api.openai_errors import worded
from api.stream import Done, Event, Failed, KeepAlive
from core.errors import ExecutionError, ServingError
from core.request import InferenceRequest
from core.result import InferenceResult

log = logging.getLogger("batchmux.api")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """How the answer looks.

    compression: quality of JPEG and WebP, None for ours. origin: of addresses. event: first part of
    the names of a stream's events. patch: pixels per token along one side, for ``usage``.
    """

    image_format: ImageFormat
    compression: int | None
    as_url: bool
    origin: str
    quality: str
    event: str
    patch: int


async def render(
    services: Services, shape: Shape, requests: Sequence[InferenceRequest], results: Sequence[InferenceResult]
) -> bytes:
    """JSON text. Raises ``CapacityError`` ``storage_full``."""
    pictures = await asyncio.gather(
        *(
            _picture(services, shape, request, result)
            for request, result in zip(requests, results, strict=True)
        )
    )
    rest = {
        "created": int(time.time()),
        **_look(shape, requests[0]),
        "model": requests[0].model,
        "usage": usage(requests, shape.patch),
    }
    # Joined: a JSON writer would only look at a million harmless characters once more.
    return b'{"data":[' + b",".join(pictures) + b"]," + orjson.dumps(rest)[1:]


async def stream(
    services: Services, shape: Shape, request: InferenceRequest, events: AsyncIterator[Event]
) -> AsyncIterator[bytes]:
    """Partial pictures, then the completed one or an error, as server-sent events."""
    shown = 0
    try:
        async for event in events:
            match event:
                case Done(result):
                    yield await _event(
                        services,
                        shape,
                        request,
                        _file_of(services, shape, request, result),
                        f"{shape.event}.completed",
                        {"usage": usage([request], shape.patch), "seed": result.seed, "model": result.model},
                    )
                case Failed(error):
                    yield _error(error)
                case KeepAlive():
                    yield b": still here\n\n"
                case _ if event.preview is None:
                    # A comment, so that nothing on the way takes the connection for a dead one.
                    yield b": step %d of %d\n\n" % (event.step, event.steps)
                case _:
                    yield await _event(
                        services,
                        shape,
                        request,
                        partial(
                            encode,
                            event.preview,
                            shape.image_format,
                            request.size,
                            quality=shape.compression,
                        ),
                        f"{shape.event}.partial_image",
                        {"partial_image_index": shown},
                    )
                    shown += 1
    except ServingError as error:
        yield _error(error)
    except Exception:
        log.exception("job=%s failed in a way nobody foresaw", request.id)
        yield _error(ExecutionError("pipeline_error", "the server failed on this request"))
    yield b"data: [DONE]\n\n"


def usage(requests: Sequence[InferenceRequest], patch: int) -> dict[str, Any]:
    """Tokens of pictures as the transformer counts them; those of text are a guess, of four letters each."""
    first = requests[0]
    text = -(-len(first.prompt.encode()) // 4)
    seen = first.reference_sizes or tuple(image.size for image in first.images)
    pictures = sum(-(-width // patch) * -(-height // patch) for width, height in seen)
    width, height = first.canvas
    made = len(requests) * (-(-width // patch) * -(-height // patch))
    return {
        "input_tokens": text + pictures,
        "input_tokens_details": {"text_tokens": text, "image_tokens": pictures},
        "output_tokens": made,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": made},
        "total_tokens": text + pictures + made,
    }


def _look(shape: Shape, request: InferenceRequest) -> dict[str, Any]:
    return {
        "background": "opaque",
        "output_format": shape.image_format,
        "quality": shape.quality,
        "size": "{}x{}".format(*request.size),
    }


async def _picture(
    services: Services, shape: Shape, request: InferenceRequest, result: InferenceResult
) -> bytes:
    """One entry of ``data``; never with both an address and base64: some clients would take the wrong one."""
    if shape.as_url:
        data = await services.intake.encode_result(request, result, shape.image_format, shape.compression)
        file_id = await services.files.put(data, shape.image_format)
        url = services.files.url(file_id, shape.image_format, shape.origin)
        return orjson.dumps({"url": url, "seed": result.seed})
    text = await _base64(services, _file_of(services, shape, request, result))
    return b'{"b64_json":"' + text + b'","seed":%d}' % result.seed


async def _event(
    services: Services,
    shape: Shape,
    request: InferenceRequest,
    encoded: Callable[[], bytes],
    name: str,
    more: dict[str, Any],
) -> bytes:
    text = await _base64(services, encoded)
    rest = {"type": name, "created_at": int(time.time()), **_look(shape, request), **more}
    head = b"event: " + name.encode() + b'\ndata: {"b64_json":"'
    return head + text + b'",' + orjson.dumps(rest)[1:] + b"\n\n"


def _error(error: ServingError) -> bytes:
    return b"event: error\ndata: " + orjson.dumps({"type": "error", "error": worded(error)}) + b"\n\n"


def _file_of(
    services: Services, shape: Shape, request: InferenceRequest, result: InferenceResult
) -> Callable[[], bytes]:
    return partial(services.intake.file, request, result, shape.image_format, shape.compression)


async def _base64(services: Services, encoded: Callable[[], bytes]) -> bytes:
    """encoded: makes a file; called in a codec's thread."""

    def work() -> bytes:
        text: bytes = pybase64.b64encode(encoded())
        return text

    return await services.intake.codec.finish(work)
