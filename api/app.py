"""The HTTP application: every dialect's routes and the probes, around the one port ``submit``."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from api import (
    automatic1111,
    edit_form,
    file_route,
    flat_route,
    generate_service,
    hugging_face,
    jobs,
    metrics_route,
    openai_images,
    openai_models,
    probes,
    runpod_queue,
    sdxl_service,
    vision_jobs,
    vision_models,
    vision_service,
)
from api.dialect import ApiOptions, Endpoint, Load, Purge, Services, nothing_to_load, nothing_to_purge
from api.files import FileStore
from api.flat import refuse
from api.gate import AccessOptions, Gate
from api.intake import ImageIntake
from api.job_runner import JobRunner
from api.metrics import Metrics
from api.observing import Observing
from api.visit import visit_of
from core.catalog import Catalog
from core.errors import ExecutionError, RequestError, ServingError
from core.result import Progress
from core.service import Admit, HealthProbe, Submit
from core.stats import Stats

if TYPE_CHECKING:
    from api.tracing import Tracing

__all__ = ["AccessOptions", "ApiOptions", "create_app"]


def create_app(
    submit: Submit,
    catalog: Catalog,
    health: HealthProbe,
    options: ApiOptions,
    *,
    intake: ImageIntake,
    admit: Admit,
    files: FileStore,
    progress: Callable[[str], Progress | None] = lambda job_id: None,
    job_runner: JobRunner | None = None,
    stats: Callable[[], Stats] = Stats,
    access: AccessOptions | None = None,
    tracing: "Tracing | None" = None,
    purge: Purge = nothing_to_purge,
    load: Load = nothing_to_load,
) -> FastAPI:
    """``intake`` may be shared with other modes; who opened it closes it."""
    app = FastAPI(
        title="batchmux",
        description="Making and editing images; the requests of different callers share each denoising step.",
        redirect_slashes=False,
        exception_handlers={HTTPException: _no_such_route, Exception: _broken_probe},
    )
    metrics = Metrics(health, stats)
    if tracing is not None:
        submit = tracing.traced(submit)
    services = Services(
        submit=metrics.counted(submit),
        catalog=catalog,
        health=health,
        options=options,
        intake=intake,
        admit=admit,
        files=files,
        progress=progress,
        stats=stats,
        jobs=job_runner,
        purge=purge,
        load=load,
    )
    endpoints = (
        *flat_route.endpoints(services),
        *file_route.endpoints(services),
        *openai_images.endpoints(services),
        *openai_models.endpoints(services),
        *runpod_queue.endpoints(services),
        *edit_form.endpoints(services),
        *generate_service.endpoints(services),
        *sdxl_service.endpoints(services),
        *vision_service.endpoints(services),
        *vision_models.endpoints(services),
        *vision_jobs.submit_endpoints(services),
        *(vision_jobs if options.profile == "vision" else jobs).endpoints(services),
        *hugging_face.endpoints(services),
        *automatic1111.endpoints(services),
        *probes.endpoints(services),
        *metrics_route.endpoints(services, metrics),
    )
    for endpoint in endpoints:
        _add(app, endpoint)
    app.state.endpoints = endpoints  # what was declared, for whoever checks all of it
    _surround(app, endpoints, access or AccessOptions(), metrics, options, tracing)
    return app


def _surround(
    app: FastAPI,
    endpoints: Sequence[Endpoint],
    access: AccessOptions,
    metrics: Metrics,
    options: ApiOptions,
    tracing: "Tracing | None",
) -> None:
    """What stands before the routing; the last one added is met first."""
    app.add_middleware(Gate, options=access)
    if tracing is not None:
        app.add_middleware(tracing.middleware)
    app.add_middleware(Observing, endpoints=endpoints, metrics=metrics, log_prompts=options.log_prompts)
    if access.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*"],
        )


def _add(app: FastAPI, endpoint: Endpoint) -> None:
    async def handle(request: Request) -> Response:
        return await endpoint.handle(request)

    app.add_api_route(
        endpoint.path,
        handle,
        methods=list(endpoint.methods),
        summary=endpoint.summary or None,
        responses=dict(endpoint.responses),
        openapi_extra=None if endpoint.openapi is None else dict(endpoint.openapi),
        include_in_schema=endpoint.documented,
    )


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
    visit = visit_of(request.scope)
    visit.code = fault.code
    status, body = refuse(fault, request_id=visit.shown_id, gpu_available=None)
    return Response(
        orjson.dumps(body), status, headers | {"X-Request-Id": visit.shown_id}, "application/json"
    )
