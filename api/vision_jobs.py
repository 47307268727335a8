"""Vision requests as jobs: ``/jobs/submit/{model_type}``, and ``/jobs`` in the words of its first clients.

They lie in the same store as all other jobs: a restart loses none, and results are kept as long.
"""

import re
import time
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from api.body import parse_json
from api.budget import Lease
from api.dialect import Answer, Arrival, Endpoint, Services
from api.fields import FAULTS, body_of, worded
from api.job_record import JobOutcome, JobRecord, JobState, NewJob
from api.job_route import JobRoute, idempotency_key, runner_of
from api.job_runner import Work
from api.runpod_fields import wait_seconds, webhook_of
from api.several import submit_all
from api.vision_kinds import KINDS
from api.vision_service import VisionService, refuse
from core.errors import ExecutionError, RequestError, ServingError
from core.result import OnProgress

DIALECT: Final = "vision"
_SPEAKS: Final = "vision_jobs"
_STATUS: Final = {
    JobState.QUEUED: "pending",
    JobState.RUNNING: "running",
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "failed",
    JobState.EXPIRED: "failed",
}
_LISTED: Final = 1000  # jobs that are looked through for a list
_HARMLESS: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_EXECUTION_SECONDS: Final = 600.0
_DAY: Final = 24 * 3600.0

_INSTANT: Final = {"type": ["string", "null"], "format": "date-time"}
_JOB: Final = {
    "type": "object",
    "required": ["job_id", "status", "created_at", "completed_at", "result", "error"],
    "properties": {
        "job_id": {"type": "string"},
        "status": {"enum": ["pending", "running", "completed", "failed"]},
        "created_at": _INSTANT,
        "completed_at": _INSTANT,
        "result": {"description": "as the synchronous route answers; null in lists and until it is there"},
        "error": {"type": ["string", "null"]},
    },
}
_MESSAGE: Final = {"type": "object", "required": ["message"], "properties": {"message": {"type": "string"}}}


class Unknown(RequestError):
    """In the sentence and with the status that the first clients know."""

    def __init__(self, code: str, message: str, status: int) -> None:
        super().__init__(code, message)
        self.status = status


def submit_endpoints(services: Services) -> list[Endpoint]:
    """One address for each model, so that each documents the body it takes."""
    jobs = VisionJobs(services)
    route = JobRoute(services, jobs.submit, refusal, max_body_bytes=services.options.max_body_bytes)
    known = [
        Endpoint(
            path=f"/jobs/submit/{kind.name}",
            handle=route,
            speaks=_SPEAKS,
            summary=f"Queue a job: {kind.summary[0].lower()}{kind.summary[1:]}",
            openapi={"requestBody": _with_webhook(body_of(kind.body))},
            responses=_answers(_JOB),
        )
        for kind in KINDS.values()
    ]
    return [
        *known,
        Endpoint(path="/jobs/submit/{model_type}", handle=route, speaks=_SPEAKS, documented=False),
    ]


def endpoints(services: Services) -> list[Endpoint]:
    """``/jobs`` of a server with API_PROFILE=vision; see ``api.jobs`` for any other."""
    jobs = VisionJobs(services)
    every = {"type": "object", "additionalProperties": _JOB}
    id_parameter = {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "of a job of yours",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9-]+$"},
    }
    wait = {
        "name": "wait",
        "in": "query",
        "description": "milliseconds to wait for its end; none where it is left out",
        "schema": {"type": "integer", "minimum": 1000, "maximum": 300_000},
    }
    table = (
        ("GET", "/jobs", jobs.listed, "Your jobs by their ids, without results", every),
        ("GET", "/jobs/{id}", jobs.get, "One job, with its result", _JOB),
        ("DELETE", "/jobs/{id}", jobs.delete, "End a job and forget it", _MESSAGE),
    )
    return [
        Endpoint(
            path=path,
            handle=JobRoute(services, act, refusal),
            speaks=_SPEAKS,
            methods=(method,),
            summary=summary,
            control=True,
            openapi={"parameters": [id_parameter, *[wait] * (method == "GET")]} if "{id}" in path else {},
            responses=_answers(schema),
        )
        for method, path, act, summary, schema in table
    ]


class VisionJobs:
    """Each method is an ``api.job_route.Act``."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def submit(self, arrival: Arrival, body: bytes, lease: Lease) -> Answer:
        name = arrival.path_params.get("model_type", arrival.path.rpartition("/")[2])
        if name not in KINDS:
            raise Unknown("invalid_parameter", f"Invalid model type: {_word(name)}", 400)
        runner = runner_of(self._services)
        content = parse_json(body)
        webhook = webhook_of(content.pop("webhook", None)) if isinstance(content, dict) else None
        VisionService(self._services, KINDS[name]).wishes(content)
        job, _ = await runner.create(
            NewJob(
                owner=arrival.owner,
                dialect=DIALECT,
                body=name.encode() + b"\n" + body,
                idempotency_key=idempotency_key(arrival),
                ttl=_DAY,
                execution_timeout=_EXECUTION_SECONDS,
                webhook=webhook,
            )
        )
        return Answer(orjson.dumps(shown_job(job)))

    async def get(self, arrival: Arrival, body: bytes, lease: Lease) -> Answer:
        """With ``?wait=``, milliseconds, once it has ended or they are over."""
        job = await self._job(arrival)
        if "wait" in arrival.query:
            job = await runner_of(self._services).wait(arrival.owner, job.id, wait_seconds(arrival.query))
        return Answer(orjson.dumps(shown_job(job)))

    async def listed(self, arrival: Arrival, body: bytes, lease: Lease) -> Answer:
        store = runner_of(self._services).store
        page = await store.page(arrival.owner, limit=_LISTED)
        jobs = {job.id: shown_job(job) for job in page.jobs if job.dialect == DIALECT}
        return Answer(orjson.dumps(jobs))

    async def delete(self, arrival: Arrival, body: bytes, lease: Lease) -> Answer:
        """Ended first where it waits or runs."""
        runner = runner_of(self._services)
        job = await self._job(arrival)
        await runner.cancel(arrival.owner, job.id)
        await runner.store.drop(arrival.owner, job.id)
        return Answer(orjson.dumps({"message": f"Job {job.id} deleted"}))

    async def _job(self, arrival: Arrival) -> JobRecord:
        id = arrival.path_params["id"]
        missing = Unknown("job_not_found", f"Job {_word(id)} not found", 404)
        try:
            job = await runner_of(self._services).store.get(arrival.owner, id)
        except RequestError:
            raise missing from None
        if job.dialect != DIALECT:
            raise missing
        return job


def vision_work(services: Services) -> Work:
    """Carries out what ``submit`` took; masks are dense where a job names no format."""

    async def work(job: JobRecord, on_progress: OnProgress) -> JobOutcome:
        name, _, body = job.body.partition(b"\n")
        kind = KINDS.get(name.decode("ascii", "replace"))
        if kind is None:
            raise ExecutionError("pipeline_error", "this server does not know this kind of job any more")
        service = VisionService(services, kind, mask_format="dense")
        content = parse_json(body)
        content.pop("webhook", None)
        # The lease: a job that comes again may meet its last row still leaving the batch.
        id = f"{job.id}/{job.lease}"
        arrival = Arrival(id=id, shown_id=job.id, path="", started=time.monotonic(), headers={})
        call = await service.parse(content, arrival)
        results = await submit_all(services.submit, call.requests, on_progress)
        return JobOutcome(data=(await service.render(call, results)).body)

    return work


def shown_job(job: JobRecord) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "status": _STATUS[job.state],
        "created_at": _instant(job.created),
        "completed_at": _instant(job.finished),
        "result": None if job.outcome is None else orjson.Fragment(job.outcome.data),
        "error": job.error_message,
    }


def webhook_body(job: JobRecord) -> bytes:
    return orjson.dumps(shown_job(job))


def refusal(error: ServingError, arrival: Arrival) -> Answer:
    if isinstance(error, Unknown):
        return worded(error, arrival, status=error.status)
    return refuse(error, arrival)


def _word(name: str) -> str:
    """The caller's own only where it can do no harm in whoever shows it."""
    return name if _HARMLESS.fullmatch(name) else "of that name"


def _instant(seconds: float | None) -> str | None:
    return (
        None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    )


def _answers(schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {
        **FAULTS,
        200: {"description": "Done", "content": {"application/json": {"schema": schema}}},
        409: {"description": "An earlier use of the Idempotency-Key forbids it"},
        507: {"description": "No room for jobs, or none can be kept here"},
    }


def _with_webhook(body: dict[str, Any]) -> dict[str, Any]:
    schema = body["content"]["application/json"]["schema"]
    schema["properties"]["webhook"] = {
        "type": ["string", "null"],
        "maxLength": 2048,
        "description": "an http or https URL that is told of the end",
    }
    return body
