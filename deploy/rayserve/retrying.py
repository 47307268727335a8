"""``Retrying``: one request sent to whichever replica has room, and again when that replica is lost.

Knows nothing of Ray: ``send`` reaches a replica, and ``lost`` are the errors by which it says that the
replica is no more. A request is a pure computation (its seed is in it, nobody else sees it happen), so
computing it twice gives the same picture once; only what was *answered*, with a result or with a refusal,
is final and never sent again.
"""

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from api.stream import Done, Event, Failed
from core.errors import ExecutionError, ServingError, UpstreamError
from core.request import InferenceRequest
from core.result import InferenceResult, OnProgress, Progress

log = logging.getLogger("batchmux.rayserve")

Send = Callable[[InferenceRequest], AsyncGenerator[Event, None]]

ATTEMPTS = 3  # a request that brings down whatever runs it must not bring down a fleet


class Retrying:
    """``core.service.Submit``: what the replica streams becomes progress, and a result or an error.

    resent: how many times a request was sent again so far.
    """

    def __init__(
        self, send: Send, lost: tuple[type[BaseException], ...], *, attempts: int = ATTEMPTS
    ) -> None:
        self._send = send
        self._lost = lost
        self._attempts = attempts
        self.resent = 0

    async def __call__(
        self, request: InferenceRequest, on_progress: OnProgress | None = None
    ) -> InferenceResult:
        """Raises ``ServingError``. Progress begins again from the first step when a replica was lost."""
        for attempt in range(1, self._attempts + 1):
            # Its own id at each attempt: a replica that was only out of reach may still have the last one.
            sent = replace(request, id=f"{request.id}/{attempt}")
            try:
                return _as_asked(await self._attempt(sent, on_progress), request)
            except self._lost as error:
                log.warning("request=%s attempt=%d lost its replica: %r", request.id, attempt, error)
            except ServingError as error:
                if error.code != "shutting_down":
                    raise
                log.info("request=%s attempt=%d met a replica that shuts down", request.id, attempt)
            self.resent += attempt < self._attempts
        raise UpstreamError(
            "upstream_error",
            f"each of the {self._attempts} workers that began this request was lost; ask for less, or later",
        )

    async def _attempt(self, request: InferenceRequest, on_progress: OnProgress | None) -> InferenceResult:
        async with aclosing(self._send(request)) as events:
            async for event in events:
                if isinstance(event, Done):
                    return event.result
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Progress) and on_progress is not None:
                    on_progress(event)
        raise ExecutionError("pipeline_error", "the worker ended without an answer")


def _as_asked(result: InferenceResult, request: InferenceRequest) -> InferenceResult:
    """Ids without the number of the attempt."""
    return replace(
        result, id=request.id, mates=tuple(mate.rpartition("/")[0] or mate for mate in result.mates)
    )
