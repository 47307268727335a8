"""RunPod jobs that carry an OpenAI request: ``{"input": {"openai_route": …, "openai_input": {…}}}``.

RunPod makes them of calls to ``/v2/{endpoint_id}/openai/v1/…``. It refuses to know what is asked: each
route has its dialect.
"""

import time
from collections.abc import Mapping
from typing import Any

from api.dialect import Arrival, Dialect
from api.several import submit_all
from core.errors import ExecutionError, RequestError
from core.result import OnProgress
from core.service import Submit

_NAMES = frozenset({"openai_route", "openai_input"})


def is_openai(job_input: Mapping[str, Any]) -> bool:
    return not _NAMES.isdisjoint(job_input)


class Passthrough:
    """routes: path, as ``/v1/images/edits`` -> the dialect; its ``parse`` takes a JSON body's values."""

    def __init__(self, routes: Mapping[str, Dialect[Any]]) -> None:
        self._routes = routes

    async def __call__(
        self,
        job_input: Mapping[str, Any],
        submit: Submit,
        on_progress: OnProgress | None = None,
        *,
        id: str,
        arrived: float | None = None,
    ) -> bytes:
        """The answer that the route gives over HTTP: JSON. Raises ``ServingError``.

        id: unique among live jobs; the dialect names its requests after it.
        """
        route = self._route(job_input)
        dialect = self._routes[route]
        began = time.monotonic() if arrived is None else arrived
        arrival = Arrival(id=id, shown_id=id, path=route, started=began, headers={})
        if job_input["openai_input"].get("response_format") == "url":
            raise RequestError(
                "invalid_parameter",
                "a job of the queue answers pictures, not addresses; ask for b64_json",
                param="response_format",
            )
        call = await dialect.parse(job_input["openai_input"], arrival)
        streams = getattr(dialect, "streams", None)
        if streams is not None and streams(call):
            raise RequestError(
                "invalid_parameter", "a job of the queue cannot be streamed; leave stream out", param="stream"
            )
        answer = await dialect.render(call, await submit_all(submit, call.requests, on_progress))
        if answer.status != 200 or answer.media_type != "application/json":
            raise ExecutionError("pipeline_error", "the route's answer is no JSON, so no job can carry it")
        return answer.body

    def _route(self, job_input: Mapping[str, Any]) -> str:
        for name in sorted(job_input.keys() - _NAMES):
            raise RequestError(
                "unknown_field", f"{name} cannot stand beside openai_route; put it into openai_input"
            )
        route = job_input.get("openai_route")
        path = route.split("?")[0].rstrip("/").removeprefix("/openai") if isinstance(route, str) else ""
        if path not in self._routes:
            known = ", ".join(sorted(self._routes)) or "none"
            raise RequestError(
                "invalid_parameter", f"openai_route must be one of: {known}", param="openai_route"
            )
        if not isinstance(job_input.get("openai_input"), dict):
            raise RequestError("invalid_parameter", "openai_input must be an object", param="openai_input")
        return path
