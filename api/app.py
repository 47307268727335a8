"""The HTTP application: every dialect's routes and the probes, around the one port ``submit``."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

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
from api.gate import AccessOptions, Gate
from api.intake import ImageIntake
from api.job_runner import JobRunner
from api.metrics import Metrics
from api.observing import Observing
from api.refusing import guarded, refused
from core.catalog import Catalog
from core.errors import ExecutionError, RequestError
from core.result import Progress
from core.service import Admit, HealthProbe, Submit
from core.stats import Stats

if TYPE_CHECKING:
    from api.tracing import Tracing

__all__ = ["AccessOptions", "ApiOptions", "create_app"]

_LOCKED: Final = {"description": "A key is asked for here, and none came or one that is not known"}


def create_app(
    submit: Submit,
    catalog: Catalog,
    health: HealthProbe,
    options: ApiOptions,
    *,
    intake: ImageIntake,
    admit: Admit,
    files: FileStore,
    metrics: Metrics,
    progress: Callable[[str], Progress | None] = lambda job_id: None,
    job_runner: JobRunner | None = None,
    stats: Callable[[], Stats] = Stats,
    access: AccessOptions | None = None,
    tracing: "Tracing | None" = None,
    purge: Purge = nothing_to_purge,
    load: Load = nothing_to_load,
) -> FastAPI:
    """``intake`` may be shared with other modes; who opened it closes it.

    submit: counted by ``metrics``, and traced, by who made it: jobs that outlive their request go through it
        too. What ``metrics`` and ``tracing`` are wanted for here is the HTTP requests.
    """
    app = FastAPI(
        title="batchmux",
        description="Making, editing and looking at pictures; callers share each forward pass.",
        redirect_slashes=False,
        exception_handlers={HTTPException: _no_such_route, Exception: _broken},
    )
    services = Services(
        submit=submit,
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
    answered = guarded(endpoint.handle)

    async def handle(request: Request) -> Response:
        return await answered(request)

    app.add_api_route(
        endpoint.path,
        handle,
        methods=list(endpoint.methods),
        summary=endpoint.summary or None,
        responses=dict(endpoint.responses) if endpoint.public else {401: _LOCKED, **endpoint.responses},
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
    response = refused(fault, request)
    response.headers.update(error.headers or {})
    return response


async def _broken(request: Request, error: Exception) -> Response:
    return refused(ExecutionError("pipeline_error", "the server failed on this request"), request)
