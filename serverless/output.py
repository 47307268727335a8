"""What may leave as a job's answer: strict JSON below the platform's limit, or an error that says why.

The SDK posts nothing, and says nothing to the caller, when an answer holds bytes, NaN, a cycle or a
lone surrogate; the platform drops what is over 20 MB. Then the job hangs until it times out.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pybase64

from api.errors import message_of
from api.flat import FlatJob
from api.images import ImageFormat
from core.errors import ExecutionError, ServingError
from core.result import InferenceResult
from serverless.bucket import Bucket, Put

Render = Callable[[FlatJob, InferenceResult], Awaitable[dict[str, Any]]]

MB = 1_000_000  # as the platform counts
SMALLER: tuple[ImageFormat, ...] = (
    "jpeg",
    "webp",
)  # tried in this order: WebP is the smaller and by far the slower


class OutputGuard:
    """Renders a result so that it fits.

    render: the answer of a job, with the picture as base64 in ``image``.
    limit:  bytes of the answer as JSON.
    bucket: the operator's, or None. A job's own ``s3Config`` goes before it.
    """

    def __init__(self, render: Render, limit: int, bucket: Bucket | None, put: Put) -> None:
        self._render = render
        self.limit = limit
        self._bucket = bucket
        self._put = put

    async def __call__(
        self, job: FlatJob, result: InferenceResult, job_id: str, bucket: Bucket | None = None
    ) -> dict[str, Any]:
        """Raises ``ExecutionError`` ``output_too_large``, or ``pipeline_error`` for what is no JSON."""
        asked = await self._render(job, result)
        smallest = measure(asked)
        if smallest <= self.limit:
            return asked
        for image_format in SMALLER:
            if image_format == job.output_format:
                continue
            answer = await self._render(replace(job, output_format=image_format), result)
            size = measure(answer)
            if size <= self.limit:
                return answer
            smallest = min(size, smallest)
        bucket = bucket or self._bucket
        if bucket is not None:
            return await self._uploaded(asked, f"{job_id}/result.{job.output_format}", bucket)
        raise ExecutionError(
            "output_too_large",
            f"the result is {smallest / MB:.3g} MB in its smallest format, over the limit of "
            f"{self.limit / MB:g} MB; ask for a smaller width and height, or give the job an s3Config "
            "(the operator can set BUCKET_ENDPOINT_URL or raise MAX_OUTPUT_MB)",
        )

    async def _uploaded(self, answer: dict[str, Any], key: str, bucket: Bucket) -> dict[str, Any]:
        """The answer with the address of the picture, in the format asked for, in place of the picture."""
        picture = pybase64.b64decode(answer["image"])
        try:
            url = await bucket.upload(self._put, key, picture, f"image/{answer['output_format']}")
        except ServingError as error:
            raise ExecutionError(
                "output_too_large",
                f"the result is over the limit of {self.limit / MB:g} MB and the bucket did not take it: "
                f"{message_of(error)}",
            ) from None
        answer = {name: value for name, value in answer.items() if name != "image"}
        return answer | {"image_url": url}


def within(limit: int, answer: bytes) -> bytes:
    """``answer``, which is JSON already. Raises ``ExecutionError`` ``output_too_large``."""
    if len(answer) > limit:
        raise ExecutionError(
            "output_too_large",
            f"the result is {len(answer) / MB:.3g} MB, over the limit of {limit / MB:g} MB; ask for "
            "smaller or fewer pictures, or for JPEG (the operator can raise MAX_OUTPUT_MB)",
        )
    return answer


def measure(answer: dict[str, Any]) -> int:
    """Bytes of ``answer`` as the SDK will post it. Raises ``ExecutionError`` when it could not be posted.

    ``image`` is base64, which JSON leaves as it is: to write it would only stop the event loop, 0.1 s for
    the largest.
    """
    image = answer.get("image")
    if not (isinstance(image, str) and image.isascii()):
        image = ""
    try:
        rest = answer | {"image": ""} if image else answer
        return len(json.dumps(rest, allow_nan=False, ensure_ascii=False).encode()) + len(image)
    except (TypeError, ValueError, RecursionError):
        raise ExecutionError("pipeline_error", "the result cannot be written as JSON") from None


def refusal(error: ServingError) -> dict[str, Any]:
    """An error as an answer. ``error`` is plain text: the SDK and its clients take nothing else there."""
    message = message_of(error)
    answer = {"error": message, "code": error.code, "message": message, "retryable": error.retryable}
    return answer if error.param is None else answer | {"param": error.param}
