"""The HTTP application: routes, probes and their documentation, around the one port ``submit``."""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from api.body import ClientGone, parse_json, read_body
from api.budget import Lease
from api.errors import headers_of
from api.exchange import figures, request_id, unless_gone
from api.flat import FlatDialect, refuse, unwrap
from api.flat_docs import ANSWERS, BODY
from api.images import ImageFormat
from api.intake import ImageIntake
from core.catalog import Catalog
from core.errors import CapacityError, ExecutionError, RequestError, ServingError
from core.result import InferenceResult
from core.service import Admit, Health, HealthProbe, Submit

log = logging.getLogger("batchmux.api")

Probe = Callable[[], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiOptions:
    """body_seconds: for a body to arrive in full; body_stall_seconds: without a byte of it.

    timeout: deadline of a request that names none.
    """

    max_body_bytes: int = 40 * 2**20
    body_seconds: float = 30.0
    body_stall_seconds: float = 5.0
    output_format: ImageFormat = "png"
    timeout: float | None = 600.0


def create_app(
    submit: Submit,
    catalog: Catalog,
    health: HealthProbe,
    options: ApiOptions,
    *,
    intake: ImageIntake,
    admit: Admit,
) -> FastAPI:
    """``intake`` may be shared with other modes; who opened it closes it."""
    app = FastAPI(
        title="batchmux",
        description="Image editing in which the edits of different callers share each denoising step.",
        redirect_slashes=False,
        exception_handlers={HTTPException: _no_such_route, Exception: _broken_probe},
    )
    flat = FlatRoute(submit, catalog, health, options, intake, admit)
    for path in ("/run", "/runsync"):
        app.add_api_route(
            path,
            flat.run,
            methods=["POST"],
            summary="Edit a picture",
            responses=ANSWERS,
            openapi_extra={"requestBody": BODY},
        )
    _add_probes(app, catalog, health)
    return app


class FlatRoute:
    """One request of ``/run`` or ``/runsync`` from its first byte to its log line."""

    def __init__(
        self,
        submit: Submit,
        catalog: Catalog,
        health: HealthProbe,
        options: ApiOptions,
        intake: ImageIntake,
        admit: Admit,
    ) -> None:
        self._submit = submit
        self._admit = admit
        self._health = health
        self._options = options
        self._budget = intake.budget
        self._dialect = FlatDialect(
            catalog=catalog, intake=intake, output_format=options.output_format, timeout=options.timeout
        )

    async def run(self, request: Request) -> Response:
        started = time.monotonic()
        job_id = secrets.token_hex(8)
        shown_id = request_id(request.headers.get("x-request-id"), job_id)
        code = "ok"
        try:
            self._refuse_early()
            content, result = await self._work(request, job_id, started)
            response = Response(content, media_type="application/json", headers=figures(result))
        except ClientGone:
            code = "cancelled"
            response = Response(status_code=499)
        except ServingError as error:
            code = error.code
            response = self._error(error, shown_id, request)
        except Exception:
            log.exception("request=%s job=%s failed in a way nobody foresaw", shown_id, job_id)
            code = "pipeline_error"
            response = self._error(
                ExecutionError(code, "the server failed on this request"), shown_id, request
            )
        response.headers["X-Request-Id"] = shown_id
        log.info(
            "request=%s job=%s path=%s status=%d code=%s out=%d ms=%.0f",
            shown_id,
            job_id,
            request.url.path,
            response.status_code,
            code,
            len(response.body),
            (time.monotonic() - started) * 1000,
        )
        return response

    def _refuse_early(self) -> None:
        """Before a byte of the body is read. While a model loads, work is accepted and waits for it."""
        health = self._health()
        if health.state in ("failed", "draining"):
            raise _why_not(health)
        self._admit()

    async def _work(self, request: Request, job_id: str, started: float) -> tuple[bytes, InferenceResult]:
        with self._budget.lease() as lease:
            # Nested, so that no variable here keeps the body while the job runs.
            return await unless_gone(
                request.receive,
                self._compute(await self._read(request, lease), job_id, started, lease),
            )

    async def _read(self, request: Request, lease: Lease) -> object:
        body = await read_body(
            request.receive,
            request.headers,
            lease,
            limit=self._options.max_body_bytes,
            seconds=self._options.body_seconds,
            stall_seconds=self._options.body_stall_seconds,
        )
        return unwrap(parse_json(body))

    async def _compute(
        self, job_input: object, job_id: str, started: float, lease: Lease
    ) -> tuple[bytes, InferenceResult]:
        job = await self._dialect.parse(job_input, id=job_id, arrived=started)
        del job_input
        lease.give_back()
        result = await self._submit(job.request)
        return await self._dialect.render(job, result), result

    def _error(self, error: ServingError, shown_id: str, request: Request) -> Response:
        status, body = refuse(error, request_id=shown_id, gpu_available=self._health().gpu_available)
        response = _json(body, status, headers_of(error))
        if error.code == "request_timeout" or "expect" in request.headers:
            # What is left of the body may never come, so the connection cannot be used again.
            response.headers["Connection"] = "close"
        return response


def _add_probes(app: FastAPI, catalog: Catalog, health: HealthProbe) -> None:
    def probe(path: str, **documentation: Any) -> Callable[[Probe], Probe]:
        """GET, and HEAD without a place in the documentation: balancers ask with either."""

        def add(answer: Probe) -> Probe:
            app.add_api_route(path, answer, methods=["GET"], **documentation)
            app.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)
            return answer

        return add

    @probe("/", summary="What is served here")
    async def root() -> Response:
        models = [spec.name for spec in catalog]
        return _json(
            {"service": "batchmux", "model": catalog.default.name, "models": models, "docs": "/docs"}
        )

    @probe("/health", summary="State in full; always 200")
    async def show_health() -> Response:
        return _json(_health_body(health()))

    @probe("/live", summary="The process answers")
    async def live() -> Response:
        return _json({"status": "alive"})

    @probe("/ready", summary="Ready for work", responses={503: {"description": "Not ready, or draining"}})
    async def ready() -> Response:
        state = health()
        if state.ready:
            return _json({"status": "ready"})
        return _json({"status": state.state, "detail": state.detail}, 503, headers_of(_why_not(state)))

    @probe(
        "/ping",
        summary="The load balancer's probe",
        responses={204: {"description": "Loading"}, 503: {"description": "Failed, or draining"}},
    )
    async def ping() -> Response:
        state = health()
        if state.state == "loading":
            return Response(status_code=204)
        return _json({"status": state.state}, 200 if state.ready else 503)


def _why_not(health: Health) -> CapacityError:
    """What a server that is not ready says; ``Retry-After`` only where waiting can help."""
    if health.state == "draining":
        return CapacityError("shutting_down", "this server is shutting down; ask another", retry_after=5)
    if health.state == "failed":
        return CapacityError(
            "not_ready",
            health.detail or "the model cannot be loaded",
            retry_after=health.retry_after,
            retryable=health.retry_after is not None,
        )
    return CapacityError("model_loading", health.detail or "the model is loading", retry_after=5)


def _health_body(health: Health) -> dict[str, Any]:
    return {
        "status": health.state,
        "gpu_available": health.gpu_available,
        "model": health.model,
        "detail": health.detail,
        "lightning_enabled": health.lightning_enabled,
        "jobs": health.counts,
        "caches": health.caches,
        "loading": health.loading,
        "models": health.models,
    }


def _json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, "application/json")


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another one")
        fault = RequestError("method_not_allowed", f"this path does not take that method; use {allowed}")
    else:
        fault = RequestError("not_found", "no such path here; /docs lists what there is")
    return _plain_error(fault, request, dict(error.headers or {}))


async def _broken_probe(request: Request, error: Exception) -> Response:
    return _plain_error(ExecutionError("pipeline_error", "the server failed on this request"), request, {})


def _plain_error(fault: ServingError, request: Request, headers: dict[str, str]) -> Response:
    shown_id = request_id(request.headers.get("x-request-id"), secrets.token_hex(8))
    status, body = refuse(fault, request_id=shown_id, gpu_available=None)
    return _json(body, status, headers | {"X-Request-Id": shown_id})
