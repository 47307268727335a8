"""Jobs of RunPod's form that ask a vision model: ``{"input": {"task": "segment", …}}``, as the routes."""

import time
from collections.abc import Mapping
from typing import Any, Final

import orjson
import pybase64

from api.dialect import Arrival, Services
from api.several import submit_all
from api.vision_kinds import KINDS
from api.vision_service import VisionService
from core.errors import RequestError
from core.result import OnProgress
from core.service import Submit

_KINDS: Final = {str(kind.task): kind for kind in KINDS.values()}


def is_vision(job_input: Mapping[str, Any]) -> bool:
    return "task" in job_input


class VisionTasks:
    def __init__(self, services: Services) -> None:
        self._services = {task: VisionService(services, kind) for task, kind in _KINDS.items()}

    async def __call__(
        self,
        job_input: Mapping[str, Any],
        submit: Submit,
        on_progress: OnProgress | None = None,
        *,
        id: str,
        arrived: float | None = None,
    ) -> bytes:
        """The answer that the route gives over HTTP: JSON; with ``render`` true it has a PNG in ``image``.

        Raises ``ServingError``. id: unique among live jobs.
        """
        fields = dict(job_input)
        task, render = fields.pop("task"), fields.pop("render", False)
        service = self._services.get(task) if isinstance(task, str) else None
        if service is None:
            raise RequestError(
                "invalid_parameter",
                f"task must be one of: {', '.join(_KINDS)}; leave it out to make a picture",
                param="task",
            )
        if not isinstance(render, bool):
            raise RequestError("invalid_parameter", "render must be true or false", param="render")
        arrival = Arrival(
            id=id,
            shown_id=id,
            path=f"/inference/{task}",
            started=time.monotonic() if arrived is None else arrived,
            headers={},
            query={"render": "1" if render else "0"},
        )
        call = await service.parse(fields, arrival)
        answer = await service.render(call, await submit_all(submit, call.requests, on_progress))
        if render:
            picture = pybase64.b64encode(answer.body).decode()
            return orjson.dumps({"image": picture, "model_id": call.model})
        return answer.body
