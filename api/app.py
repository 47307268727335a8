"""The HTTP application: every dialect's routes and the probes, around the one port ``submit``."""

import secrets
from collections.abc import Callable

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from api import edit_form, flat_route, generate_service, probes, sdxl_service
from api.dialect import ApiOptions, Endpoint, FileStore, Purge, Services, nothing_to_purge
from api.exchange import request_id
from api.flat import refuse
from api.intake import ImageIntake
from core.catalog import Catalog
from core.errors import ExecutionError, RequestError, ServingError
from core.result import Progress
from core.service import Admit, HealthProbe, Submit

__all__ = ["ApiOptions", "create_app"]


def create_app(
    submit: Submit,
    catalog: Catalog,
    health: HealthProbe,
    options: ApiOptions,
    *,
    intake: ImageIntake,
    admit: Admit,
    progress: Callable[[str], Progress | None] = lambda job_id: None,
    purge: Purge = nothing_to_purge,
    files: FileStore | None = None,
) -> FastAPI:
    """``intake`` may be shared with other modes; who opened it closes it."""
    app = FastAPI(
        title="batchmux",
        description="Making and editing images; the requests of different callers share each denoising step.",
        redirect_slashes=False,
        exception_handlers={HTTPException: _no_such_route, Exception: _broken_probe},
    )
    services = Services(
        submit=submit,
        catalog=catalog,
        health=health,
        options=options,
        intake=intake,
        admit=admit,
        progress=progress,
        purge=purge,
        files=files,
    )
    for part in (flat_route, edit_form, generate_service, sdxl_service, probes):
        for endpoint in part.endpoints(services):
            _add(app, endpoint)
    return app


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
    shown_id = request_id(request.headers.get("x-request-id"), secrets.token_hex(8))
    status, body = refuse(fault, request_id=shown_id, gpu_available=None)
    return Response(orjson.dumps(body), status, headers | {"X-Request-Id": shown_id}, "application/json")
