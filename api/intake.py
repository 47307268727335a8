"""Pictures as callers write them (URL, data URI, base64, bytes) to decoded images."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Protocol, TypeGuard

import pybase64

from api.body import LongText
from api.budget import ByteBudget, Lease
from api.codec import Codec
from api.fetch import GuardedFetch
from api.images import NO_TEXT, ImageFormat, ImageLimits, decode, decode_mask, encode, too_many_bytes
from api.settings_text import settings_text
from core.errors import ExecutionError, RequestError
from core.request import Image, InferenceRequest, Size
from core.result import InferenceResult

_DATA_URI = re.compile(r"data:[^,;]{0,100}(?:;[^,;]{1,100}){0,4}?;base64,", re.IGNORECASE)
_LONGEST_PREFIX = 1024
_USUAL_ALPHABET = bytes.maketrans(b"-_", b"+/")
_BLANKS = b" \t\r\n\f\v"


class Fetch(Protocol):
    """Bytes of a URL. Raises ``RequestError``; ``lease`` is told of bytes as they come."""

    async def __call__(self, url: str, lease: Lease) -> bytes: ...


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One picture of a request, not yet looked at.

    content: an http(s) URL, a data URI or base64 text; or the file's bytes.
    param:   the request's field, for errors.
    transparent: a mask whose clear parts, where it has any, are what is painted anew.
    """

    content: str | LongText | bytes
    param: str
    transparent: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class IntakeOptions:
    """codec_waiting: requests whose pictures wait to be decoded before further ones are refused.

    held_bytes: of bodies and fetched files held at once before further ones are refused.
    png_metadata: the settings of a picture are written into its PNG.
    """

    limits: ImageLimits = field(default_factory=ImageLimits)
    codec_threads: int = 4
    codec_waiting: int = 256
    held_bytes: int = 2**30
    fetch_timeout: float = 10.0
    fetch_allow_hosts: frozenset[str] = frozenset()
    png_metadata: bool = True


class ImageIntake:
    """Fetches, decodes and encodes for one process; every dialect and mode shares it.

    A context manager: leaving it ends the threads. ``fetch`` is a seam for tests.
    """

    def __init__(self, options: IntakeOptions, fetch: Fetch | None = None) -> None:
        self.limits = options.limits
        self.codec = Codec(options.codec_threads, options.codec_waiting)
        self.budget = ByteBudget(options.held_bytes)
        self._guarded = GuardedFetch(
            max_bytes=options.limits.max_bytes,
            timeout=options.fetch_timeout,
            allow_hosts=options.fetch_allow_hosts,
        )
        self._fetch = fetch or self._guarded
        self._png_metadata = options.png_metadata

    def __enter__(self) -> "ImageIntake":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.codec.close()
        self._guarded.close()

    async def load(self, sources: Sequence[ImageSource], max_pixels: int | None = None) -> tuple[Image, ...]:
        """Images in the order of ``sources``. Raises ``RequestError`` that names the field at fault.

        max_pixels: of all of them together.

        All pictures of a request are decoded in one call to the pool: at most as many requests as it
        has threads hold decoded pixels that no queue accounts for.
        """
        with self.budget.lease() as lease:
            if any(_is_url(source.content) for source in sources):
                sources = await self._fetched(sources, lease)
            return await self.codec.admit(partial(_decode_all, sources, self.limits, max_pixels))

    async def load_within(
        self, sources: Sequence[ImageSource], seconds: float | None, max_pixels: int
    ) -> tuple[Image, ...]:
        """As ``load``; raises ``ExecutionError`` ``deadline_exceeded`` when it takes longer."""
        try:
            async with asyncio.timeout(seconds):
                return await self.load(sources, max_pixels)
        except TimeoutError:
            raise ExecutionError(
                "deadline_exceeded", "the request's timeout passed before its pictures were read"
            ) from None

    async def encode(
        self, image: Image, image_format: ImageFormat, size: Size, quality: int | None = None
    ) -> bytes:
        return await self.codec.finish(partial(encode, image, image_format, size, quality=quality))

    async def encode_result(
        self,
        request: InferenceRequest,
        result: InferenceResult,
        image_format: ImageFormat,
        quality: int | None = None,
    ) -> bytes:
        """The answer's picture as a file of the size asked for, with its settings inside if it is a PNG."""
        return await self.codec.finish(partial(self.file, request, result, image_format, quality))

    def file(
        self,
        request: InferenceRequest,
        result: InferenceResult,
        image_format: ImageFormat,
        quality: int | None = None,
    ) -> bytes:
        """As ``encode_result``, for work that is in a codec's thread already."""
        text = settings_text(request, result) if self._png_metadata and image_format == "png" else NO_TEXT
        return encode(result.image, image_format, request.size, text, quality)

    async def _fetched(self, sources: Sequence[ImageSource], lease: Lease) -> list[ImageSource]:
        async def one(source: ImageSource) -> ImageSource:
            if not _is_url(source.content):
                return source
            try:
                return replace(source, content=await self._fetch(source.content, lease))
            except RequestError as error:
                raise RequestError(error.code, error.message, param=source.param) from None

        tasks = [asyncio.ensure_future(one(source)) for source in sources]
        try:
            return list(await asyncio.gather(*tasks))
        finally:  # the first failure, or a caller who left, ends the other downloads
            for task in tasks:
                task.cancel()


def from_base64(text: str | LongText, limits: ImageLimits) -> bytes:
    """Bytes of base64 text or of a ``data:…;base64,`` URI.

    White space, the URL-safe alphabet and absent padding are accepted, anything else is not.
    Raises ``RequestError`` ``image_too_large`` before decoding, or ``invalid_image``.
    """
    try:
        digits = text.base64() if isinstance(text, LongText) else text
    except ValueError:
        raise RequestError("invalid_image", "the image is not valid base64") from None
    start = digits[:_LONGEST_PREFIX]
    head = start if isinstance(start, str) else bytes(start).decode("latin-1")
    if head[:5].lower() == "data:":
        prefix = _DATA_URI.match(head)
        if prefix is None:
            raise RequestError("invalid_image", "a data URI must look like data:image/png;base64,…")
        digits = digits[prefix.end() :]
    if len(digits) > limits.max_bytes * 3 // 2:  # 4/3, and room for line breaks
        raise too_many_bytes(limits)
    try:
        return _strict(digits)
    except ValueError:
        pass
    try:
        raw = digits.encode("ascii") if isinstance(digits, str) else _printable(digits)
        plain = raw.translate(_USUAL_ALPHABET, _BLANKS).rstrip(b"=")
        return _strict(plain + b"=" * (-len(plain) % 4))
    except ValueError:
        raise RequestError("invalid_image", "the image is not valid base64") from None


def _strict(digits: str | bytes | memoryview) -> bytes:
    data: bytes = pybase64.b64decode(digits, validate=True)
    return data


def _printable(digits: memoryview) -> bytes:
    """What a JSON string may hold: raw line breaks, unlike escaped ones, would be no JSON."""
    raw = bytes(digits)
    if not raw.decode("ascii").isprintable():
        raise ValueError
    return raw


def _is_url(content: str | LongText | bytes) -> TypeGuard[str]:
    return isinstance(content, str) and "://" in content[:64] and content[:5].lower() != "data:"


def _decode_all(
    sources: Sequence[ImageSource], limits: ImageLimits, max_pixels: int | None
) -> tuple[Image, ...]:
    images: list[Image] = []
    for source in sources:
        try:
            content = source.content
            data = content if isinstance(content, bytes) else from_base64(content, limits)
            images.append((decode_mask if source.transparent else decode)(data, limits))
        except RequestError as error:
            raise RequestError(error.code, error.message, param=source.param) from None
        if max_pixels is not None and sum(one.width * one.height for one in images) > max_pixels:
            raise RequestError(
                "image_too_large",
                f"the images are over the limit of {max_pixels} pixels together; send fewer or smaller ones",
                param=source.param,
            )
    return tuple(images)
