"""RunPod's queue, ``/v2/{endpoint_id}/…``: its paths, states and answers, in front of our job store.

Clients written for api.runpod.ai work by changing the base address. Any endpoint id is taken: one process
is one endpoint. Source: docs.runpod.io/serverless/endpoints/job-operations.
"""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import aclosing, suppress
from typing import Any, Final

import orjson

from api import runpod_fields
from api.body import parse_json
from api.budget import Lease
from api.dialect import Answer, Arrival, Endpoint, Services
from api.errors import message_of, status_of
from api.job_record import JobRecord, JobState, NewJob
from api.job_route import Act, JobRoute, idempotency_key, runner_of
from core.errors import RequestError, ServingError
from core.result import Progress

DIALECT: Final = "runpod"

STATUS: Final = {
    JobState.QUEUED: "IN_QUEUE",
    JobState.RUNNING: "IN_PROGRESS",
    JobState.SUCCEEDED: "COMPLETED",
    JobState.FAILED: "FAILED",
    JobState.CANCELLED: "CANCELLED",
    JobState.EXPIRED: "TIMED_OUT",
}

_RUN_BYTES: Final = 10 * 2**20
_RUNSYNC_BYTES: Final = 20 * 2**20
_KEEP_SYNC_SECONDS: Final = 60.0  # its caller has the answer already
_STREAM_SECONDS: Final = 5.0  # for news; the Python client gives up after 10
_STREAMS: Final = 10_000  # whose readers are remembered
_WORKER_ID: Final = secrets.token_hex(7)


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    """In OpenAPI's words."""
    return {"type": "object", "required": list(required), "properties": properties}


def _parameter(name: str, description: str, **schema: Any) -> dict[str, Any]:
    place = "query" if name == "wait" else "path"
    required = place == "path"
    return {"name": name, "in": place, "required": required, "description": description, "schema": schema}


_TEXT: Final = {"type": "string"}
_STATUS: Final = {"enum": list(STATUS.values())}
_ENDPOINT_ID: Final = _parameter(
    "endpoint_id", "any: one process is one endpoint", type="string", pattern="^[A-Za-z0-9_-]+$"
)
JOB_ID: Final = _parameter("id", "of a job of yours", type="string", pattern="^[A-Za-z0-9-]+$")
_WAIT: Final = _parameter(
    "wait", "milliseconds", type="integer", minimum=1000, maximum=300_000, default=90_000
)
_MS: Final = {"type": ["integer", "null"], "minimum": 1, "maximum": 7 * 24 * 3600 * 1000}
_POLICY: Final = _object(executionTimeout=_MS, ttl=_MS, lowPriority={"type": ["boolean", "null"]})
_BODY: Final = _object(
    "input",
    input={"type": "object", "description": "as of /run; looked into when the job runs"},
    webhook={"type": ["string", "null"], "maxLength": 2048, "description": "an http or https URL"},
    policy=_POLICY | {"type": ["object", "null"], "additionalProperties": False},
    s3Config={"description": "looked into when the job runs"},
    id={"description": "ignored"},
) | {"additionalProperties": False}
_BRIEF: Final = _object("id", "status", id=_TEXT, status=_STATUS)
_FULL: Final = _object(
    "id",
    "status",
    **_BRIEF["properties"],
    delayTime={"type": "integer", "description": "milliseconds in the queue"},
    executionTime={"type": "integer", "description": "milliseconds of work"},
    workerId=_TEXT,
    output={"description": "the answer; of a running job its progress"},
    error={"type": ["string", "null"]},
    code={"type": ["string", "null"]},
)
_NEWS: Final = {"type": "array", "items": _object("output", output={})}
_COUNTS: Final = {"type": "object", "additionalProperties": {"type": "integer"}}
_FAULT: Final = _object("error", "code", "request_id", error=_TEXT, code=_TEXT, request_id=_TEXT, param=_TEXT)


def answers(schema: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    """``responses`` of a route about jobs."""
    return {
        200: {"description": "Done", "content": {"application/json": {"schema": schema}}},
        **{
            status: {"description": text, "content": {"application/json": {"schema": _FAULT}}}
            for status, text in (
                (400, "No valid JSON"),
                (404, "No such job of yours, or no such path"),
                (408, "The body came too slowly"),
                (409, "The job's state, or an earlier use of the Idempotency-Key, forbids it"),
                (410, "The job is done and no longer kept"),
                (413, "The body is too large"),
                (415, "The body is compressed"),
                (422, "A field, parameter or header is not acceptable"),
                (429, "Too much waits already; Retry-After says when to come back"),
                (500, "The server failed"),
                (503, "Shutting down, or the job store does not work"),
                (507, "No room for jobs, or none can be kept here"),
            )
        },
    }


def endpoints(services: Services) -> list[Endpoint]:
    queue = RunpodQueue(services)

    def endpoint(
        method: str,
        path: str,
        act: Act,
        summary: str,
        schema: dict[str, Any],
        *,
        control: bool = True,
        limit: int = 2**16,
    ) -> Endpoint:
        parameters = [_ENDPOINT_ID, *[JOB_ID] * ("{id}" in path), *[_WAIT] * ("sync" in path)]
        body = (
            {"requestBody": {"required": True, "content": {"application/json": {"schema": _BODY}}}}
            if path.startswith("run")
            else {}
        )
        return Endpoint(
            path=f"/v2/{{endpoint_id}}/{path}",
            handle=JobRoute(services, act, refuse, max_body_bytes=limit),
            methods=(method,),
            summary=summary,
            control=control,
            speaks=DIALECT,
            openapi={"parameters": parameters, **body},
            responses=answers(schema),
        )

    return [
        endpoint("POST", "run", queue.run, "Queue a job", _BRIEF, control=False, limit=_RUN_BYTES),
        endpoint(
            *("POST", "runsync", queue.runsync, "Queue a job and wait", _FULL),
            control=False,
            limit=_RUNSYNC_BYTES,
        ),
        endpoint("GET", "status/{id}", queue.status, "How a job is doing", _FULL),
        endpoint("GET", "status-sync/{id}", queue.status_sync, "Wait for a job", _FULL),
        endpoint(
            "GET",
            "stream/{id}",
            queue.stream,
            "What is new of a job",
            _object("status", "stream", status=_STATUS, stream=_NEWS),
        ),
        endpoint("POST", "cancel/{id}", queue.cancel, "End a job", _BRIEF),
        endpoint("POST", "retry/{id}", queue.retry, "Queue a failed job again", _BRIEF, control=False),
        endpoint(
            "POST",
            "purge-queue",
            queue.purge,
            "End what waits",
            _object("removed", "status", removed={"type": "integer"}, status={"const": "completed"}),
        ),
        endpoint(
            "GET",
            "health",
            queue.health,
            "Jobs and workers by state",
            _object("jobs", "workers", jobs=_COUNTS, workers=_COUNTS),
        ),
    ]


class RunpodQueue:
    """Each method is an ``api.job_route.Act``."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._told: OrderedDict[str, Progress | None] = OrderedDict()  # by stream; None is the end

    async def run(self, arrival: Arrival, body: bytes, lease: Lease) -> Answer:
        return _brief(await self._create(arrival, body))

    async def runsync(self, arrival: Arrival, body: bytes, lease: Lease) -> Answer:
        """Through the store as well: a caller that has waited long enough goes on to ask for its status."""
        seconds = runpod_fields.wait_seconds(arrival.query)
        job = await self._create(arrival, body, prefix="sync-", keep=_KEEP_SYNC_SECONDS)
        del body
        lease.give_back()
        return self._full(await runner_of(self._services).wait(arrival.owner, job.id, seconds))

    async def status(self, arrival: Arrival, body: bytes, lease: Lease) -> Answer:
        return self._full(await self._job(arrival))

    async def status_sync(self, arrival: Arrival, body: bytes, lease: Lease) -> Answer:
        seconds = runpod_fields.wait_seconds(arrival.query)
        job = await self._job(arrival)
        return self._full(await runner_of(self._services).wait(arrival.owner, job.id, seconds))

    async def stream(self, arrival: Arrival, body: bytes, lease: Lease) -> Answer:
        """What was not read before: the latest progress, and once the output. Waits a little for news."""
        job = await self._job(arrival)
        news: list[object] = []
        if not job.state.terminal:
            progress = await self._next_progress(arrival.owner, job.id)
            news = [] if progress is None else [_progress(progress)]
            job = await self._job(arrival)
        if job.state.terminal:
            if self._told.get(job.id, job) is not None and job.outcome is not None:
                news.append(orjson.Fragment(job.outcome.data))
            self._tell(job.id, None)
        return _json({"status": STATUS[job.state], "stream": [{"output": each} for each in news]})

    async def cancel(self, arrival: Arrival, body: bytes, lease: Lease) -> Answer:
        job = await self._job(arrival)
        return _brief(await runner_of(self._services).cancel(arrival.owner, job.id))

    async def retry(self, arrival: Arrival, body: bytes, lease: Lease) -> Answer:
        job = await self._job(arrival)
        again = await runner_of(self._services).retry(arrival.owner, job.id)
        self._told.pop(job.id, None)
        return _brief(again)

    async def purge(self, arrival: Arrival, body: bytes, lease: Lease) -> Answer:
        removed = await runner_of(self._services).purge_queue(arrival.owner)
        return _json({"removed": removed, "status": "completed"})

    async def health(self, arrival: Arrival, body: bytes, lease: Lease) -> Answer:
        """Of everybody's jobs, as numbers: it tells how long the queue is."""
        store = runner_of(self._services).store
        counts = await store.counts()
        jobs = {
            "completed": counts[JobState.SUCCEEDED],
            "failed": counts[JobState.FAILED] + counts[JobState.EXPIRED],
            "inProgress": counts[JobState.RUNNING],
            "inQueue": counts[JobState.QUEUED],
            "retried": await store.retried(),
        }
        state = self._services.health().state
        running = state == "ready" and jobs["inProgress"] > 0
        workers = {
            "idle": int(state == "ready" and not running),
            "initializing": int(state == "loading"),
            "ready": int(state == "ready"),
            "running": int(running),
            "throttled": int(state == "draining"),
            "unhealthy": int(state == "failed"),
        }
        return _json({"jobs": jobs, "workers": workers})

    async def _create(
        self, arrival: Arrival, body: bytes, *, prefix: str = "", keep: float | None = None
    ) -> JobRecord:
        """``input`` is checked when the job runs, as on RunPod: a job that asks for what cannot be fails."""
        runner = runner_of(self._services)
        asked = runpod_fields.read(parse_json(body))
        new = NewJob(
            owner=arrival.owner,
            dialect=DIALECT,
            body=body,
            prefix=prefix,
            idempotency_key=idempotency_key(arrival),
            ttl=asked.ttl,
            execution_timeout=asked.execution_timeout,
            keep=keep,
            webhook=asked.webhook,
        )
        job, _ = await runner.create(new)
        return job

    async def _job(self, arrival: Arrival) -> JobRecord:
        job = await runner_of(self._services).store.get(arrival.owner, arrival.path_params["id"])
        if job.dialect != DIALECT:
            raise RequestError("job_not_found", "no such job in this queue; GET /jobs lists all of yours")
        return job

    async def _next_progress(self, owner: str, id: str) -> Progress | None:
        known = self._told.get(id)
        with suppress(TimeoutError):
            async with (
                asyncio.timeout(_STREAM_SECONDS),
                aclosing(runner_of(self._services).follow(owner, id)) as reports,
            ):
                async for progress in reports:
                    if progress != known:
                        self._tell(id, progress)
                        return progress
        return None

    def _tell(self, id: str, progress: Progress | None) -> None:
        self._told[id] = progress
        self._told.move_to_end(id)
        if len(self._told) > _STREAMS:
            self._told.popitem(last=False)

    def _full(self, job: JobRecord) -> Answer:
        return _json(shown(job, runner_of(self._services).progress(job.id)))


def shown(job: JobRecord, progress: Progress | None = None) -> dict[str, Any]:
    """A job as ``/status`` and webhooks tell of it."""
    told: dict[str, Any] = {"id": job.id, "status": STATUS[job.state]}
    if job.state is JobState.QUEUED:
        return told
    if job.started is not None:
        told |= {"delayTime": _ms(job.started - job.created), "workerId": _WORKER_ID}
        if job.finished is not None:
            told["executionTime"] = _ms(job.finished - job.started)
    if job.outcome is not None:
        told["output"] = orjson.Fragment(job.outcome.data)
    elif job.state is JobState.RUNNING and progress is not None:
        told["output"] = _progress(progress)
    if job.state in (JobState.FAILED, JobState.EXPIRED):
        told |= {"error": job.error_message, "code": job.error_code}
    return told


def webhook_body(job: JobRecord) -> bytes:
    return orjson.dumps(shown(job))


def refuse(error: ServingError, arrival: Arrival) -> Answer:
    body = {"error": message_of(error), "code": error.code, "request_id": arrival.shown_id}
    if error.param is not None:
        body["param"] = error.param
    return _json(body, status_of(error))


def _brief(job: JobRecord) -> Answer:
    return _json({"id": job.id, "status": STATUS[job.state]})


def _progress(progress: Progress) -> dict[str, object]:
    """As the worker on RunPod posts it."""
    return {"state": progress.state, "step": progress.step, "steps": progress.steps}


def _ms(seconds: float) -> int:
    return max(round(seconds * 1000), 0)  # the wall clock may go back


def _json(body: object, status: int = 200) -> Answer:
    return Answer(orjson.dumps(body), status)
