"""``/jobs``: every kept job of a caller, whichever dialect it came by.

With API_PROFILE=vision the vision dialect answers these paths instead, in the shape of its first clients
(an object keyed by id); it then lists its own endpoints in place of these.
"""

from datetime import UTC, datetime
from typing import Any, Final

import orjson

from api.budget import Lease
from api.dialect import Answer, Arrival, Endpoint, Services
from api.job_record import JobRecord, JobState
from api.job_route import Act, JobRoute, runner_of
from api.runpod_queue import JOB_ID, answers, refuse
from core.errors import RequestError
from core.result import Progress

_MOST: Final = 200
_USUAL: Final = 50

_INSTANT: Final = {"type": ["string", "null"], "format": "date-time"}
_SHOWN: Final[dict[str, Any]] = {
    "id": {"type": "string"},
    "state": {"enum": list(JobState)},
    "dialect": {"type": "string", "description": "by which it came"},
    "created_at": _INSTANT,
    "started_at": _INSTANT,
    "finished_at": _INSTANT,
    "expires_at": _INSTANT,
    "attempts": {"type": "integer"},
    "progress": {"type": ["object", "null"], "description": "state, step and steps while it runs"},
    "error": {"type": ["object", "null"], "description": "code and message"},
}
_JOB: Final = {"type": "object", "required": list(_SHOWN), "properties": _SHOWN}
_WHOLE: Final = {
    "type": "object",
    "required": [*_SHOWN, "result"],
    "properties": _SHOWN | {"result": {"description": "as its dialect answers; null if none"}},
}
_PAGE: Final = {
    "type": "object",
    "required": ["jobs", "after"],
    "properties": {
        "jobs": {"type": "array", "items": _JOB},
        "after": {"type": ["string", "null"], "description": "for the next page; null on the last"},
    },
}
_WORD: Final = f"({'|'.join(JobState)})"
_QUERY: Final[list[dict[str, Any]]] = [
    {"name": name, "in": "query", "description": text, "schema": schema}
    for name, text, schema in (
        ("after", "as the page before answered it", {"type": "string"}),
        (
            "limit",
            "jobs of one page",
            {"type": "integer", "minimum": 1, "maximum": _MOST, "default": _USUAL},
        ),
        ("state", "separated by commas", {"type": "string", "pattern": f"^{_WORD}(,{_WORD})*$"}),
    )
]


def endpoints(services: Services) -> list[Endpoint]:
    jobs = Jobs(services)
    table: list[tuple[str, str, Act, str, dict[str, Any]]] = [
        ("GET", "/jobs", jobs.page, "Your jobs, the newest first", _PAGE),
        ("GET", "/jobs/{id}", jobs.get, "One job, with its result", _WHOLE),
        ("DELETE", "/jobs/{id}", jobs.cancel, "End a job; one that has ended stays as it is", _JOB),
    ]
    return [
        Endpoint(
            path=path,
            handle=JobRoute(services, act, refuse),
            methods=(method,),
            summary=summary,
            control=True,
            speaks="jobs",
            openapi={"parameters": [JOB_ID] if "{id}" in path else _QUERY},
            responses=answers(schema),
        )
        for method, path, act, summary, schema in table
    ]


class Jobs:
    """Each method is an ``api.job_route.Act``."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def page(self, arrival: Arrival, body: bytes, lease: Lease) -> Answer:
        store = runner_of(self._services).store
        page = await store.page(
            arrival.owner,
            after=arrival.query.get("after"),
            limit=_limit(arrival.query.get("limit", str(_USUAL))),
            states=_states(arrival.query.get("state", "")),
        )
        return _json({"jobs": [self._shown(job) for job in page.jobs], "after": page.after})

    async def get(self, arrival: Arrival, body: bytes, lease: Lease) -> Answer:
        job = await runner_of(self._services).store.get(arrival.owner, arrival.path_params["id"])
        return _json(self._shown(job) | _result(job))

    async def cancel(self, arrival: Arrival, body: bytes, lease: Lease) -> Answer:
        job = await runner_of(self._services).cancel(arrival.owner, arrival.path_params["id"])
        return _json(self._shown(job))

    def _shown(self, job: JobRecord) -> dict[str, Any]:
        progress = runner_of(self._services).progress(job.id)
        failed = job.error_code is not None
        return {
            "id": job.id,
            "state": job.state,
            "dialect": job.dialect,
            "created_at": _instant(job.created),
            "started_at": _instant(job.started),
            "finished_at": _instant(job.finished),
            "expires_at": _instant(job.expires),
            "attempts": job.attempts,
            "progress": None if progress is None else _progress(progress),
            "error": {"code": job.error_code, "message": job.error_message} if failed else None,
        }


def _result(job: JobRecord) -> dict[str, Any]:
    """Every dialect's outcome is JSON."""
    return {"result": None if job.outcome is None else orjson.Fragment(job.outcome.data)}


def _progress(progress: Progress) -> dict[str, object]:
    return {"state": progress.state, "step": progress.step, "steps": progress.steps}


def _instant(seconds: float | None) -> str | None:
    return (
        None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    )


def _limit(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= _MOST:
        return int(text)
    raise RequestError("invalid_parameter", f"limit must be an integer from 1 to {_MOST}", param="limit")


def _states(text: str) -> list[JobState]:
    try:
        return [JobState(word) for word in text.split(",") if word]
    except ValueError:
        known = ", ".join(JobState)
        message = f"state must be one or more of {known}, separated by commas"
        raise RequestError("invalid_parameter", message, param="state") from None


def _json(body: object) -> Answer:
    return Answer(orjson.dumps(body))
