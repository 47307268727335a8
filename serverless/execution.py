"""What a job of RunPod's form asks for, carried out: the same for RunPod's queue and for our own."""

from collections.abc import Mapping
from typing import Any

import orjson

from api.flat import FALLBACK_PROMPT, FlatDialect
from api.passthrough import Passthrough, is_openai
from api.vision_tasks import VisionTasks, is_vision
from core.errors import RequestError
from core.result import OnProgress
from core.service import Submit
from serverless.bucket import Bucket
from serverless.output import OutputGuard, within


class Execution:
    """passthrough: of OpenAI requests. vision: of those to vision models."""

    def __init__(
        self,
        submit: Submit,
        dialect: FlatDialect,
        guard: OutputGuard,
        passthrough: Passthrough,
        vision: VisionTasks,
    ) -> None:
        self._submit = submit
        self._dialect = dialect
        self._guard = guard
        self._passthrough = passthrough
        self._vision = vision

    async def __call__(
        self,
        job: Mapping[str, Any],
        on_progress: OnProgress,
        *,
        job_id: str,
        request_id: str,
        arrived: float | None = None,
    ) -> dict[str, Any]:
        """The answer, small enough for the platform. Raises ``ServingError``.

        request_id: unique among live jobs.
        """
        bucket = Bucket.of_job(job["s3Config"]) if job.get("s3Config") is not None else None
        given = _input(job)
        if is_openai(given):
            answer = await self._passthrough(given, self._submit, on_progress, id=request_id, arrived=arrived)
            return _value(within(self._guard.limit, answer))
        if is_vision(given):
            answer = await self._vision(given, self._submit, on_progress, id=request_id, arrived=arrived)
            return _value(within(self._guard.limit, answer))
        asked = await self._dialect.parse(
            given, id=request_id, prompt_fallback=FALLBACK_PROMPT, arrived=arrived
        )
        result = await self._submit(asked.request, on_progress)
        return await self._guard(asked, result, job_id, bucket)


def _value(answer: bytes) -> dict[str, Any]:
    value: dict[str, Any] = orjson.loads(answer)
    return value


def _input(job: Mapping[str, Any]) -> dict[str, Any]:
    given = job.get("input")
    if not isinstance(given, dict):
        raise RequestError(
            "invalid_parameter",
            'the job has no "input" object; send {"input": {"prompt": …, "image_base64": …}}',
            param="input",
        )
    for value in given.values():
        # The SDK's JSON reader lets half a surrogate pair pass, and no writer can send it back.
        if isinstance(value, str) and not value.isascii() and not _is_unicode(value):
            raise RequestError(
                "invalid_parameter", "a text in input holds half a surrogate pair; send valid Unicode"
            )
    return given


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
