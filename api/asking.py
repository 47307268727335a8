"""From a caller's wishes to one request: checked before its pictures are fetched, and again with them."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

from api.intake import ImageIntake, ImageSource
from api.json_fields import in_words
from core.errors import ExecutionError, RequestError
from core.request import Image, InferenceRequest

STAND_IN: Final = Image(pixels=bytes(3), width=1, height=1)  # for a picture that is not read yet


class Ask(Protocol):
    """``PipelineSpec.request`` with everything but pictures filled in."""

    def __call__(self, *, images: tuple[Image, ...], mask: Image | None) -> InferenceRequest: ...


async def ask_with_pictures(
    ask: Ask,
    intake: ImageIntake,
    sources: Sequence[ImageSource],
    mask: ImageSource | None,
    *,
    arrived: float,
    words: Mapping[str, str],
) -> InferenceRequest:
    """arrived: by the monotonic clock, when the request's timeout began; its own is what is left of it.

    words: the dialect's names of the fields of ``PipelineSpec.request``, where they differ.
    Raises ``RequestError``, ``CapacityError`` when too much is being read already, and
    ``ExecutionError`` ``deadline_exceeded`` when nothing is left.
    """
    everything = [*sources] if mask is None else [*sources, mask]
    try:
        # What is wrong without them costs no decoding.
        asked = ask(images=(STAND_IN,) * len(sources), mask=STAND_IN if mask else None)
        async with asyncio.timeout(time_left(asked.timeout, arrived)):
            pictures = await intake.load(everything) if everything else ()
        request = ask(images=pictures[: len(sources)], mask=pictures[-1] if mask else None)
    except RequestError as error:
        raise in_words(error, words) from None
    except TimeoutError:
        raise too_late() from None
    return replace(request, timeout=time_left(asked.timeout, arrived))


def time_left(timeout: float | None, arrived: float) -> float | None:
    """Seconds of ``timeout`` that are left. Raises ``ExecutionError`` ``deadline_exceeded`` when none are."""
    if timeout is None:
        return None
    left = arrived + timeout - time.monotonic()
    if left <= 0:
        raise too_late()
    return left


def too_late() -> ExecutionError:
    return ExecutionError("deadline_exceeded", "the request's timeout passed before its pictures were read")
