"""What balancers, platforms and people ask about this process; none of it waits for a model."""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api.dialect import Endpoint, Services
from api.errors import headers_of
from core.errors import CapacityError
from core.service import Health


def endpoints(services: Services) -> list[Endpoint]:
    probes = Probes(services)
    table: list[tuple[str, Callable[[], Awaitable[Response]], str, dict[int | str, dict[str, Any]]]] = [
        ("/", probes.root, "What is served here", {}),
        ("/health", probes.health, "State in full; always 200", {}),
        ("/live", probes.live, "The process answers", {}),
        ("/ready", probes.ready, "Ready for work", {503: {"description": "Not ready, or draining"}}),
        (
            "/ping",
            probes.ping,
            "The load balancer's probe",
            {204: {"description": "Loading"}, 503: {"description": "Failed, or draining"}},
        ),
    ]
    # GET, and HEAD without a place in the documentation: balancers ask with either.
    return [
        Endpoint(
            path=path,
            handle=_without_request(answer),
            methods=(method,),
            summary=summary,
            responses=responses,
            public=True,
            documented=method == "GET",
        )
        for path, answer, summary, responses in table
        for method in ("GET", "HEAD")
    ]


def _without_request(answer: Callable[[], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        return await answer()

    return handle


class Probes:
    def __init__(self, services: Services) -> None:
        self._catalog = services.catalog
        self._health = services.health

    async def root(self) -> Response:
        models = [spec.name for spec in self._catalog]
        return _json(
            {"service": "batchmux", "model": self._catalog.default.name, "models": models, "docs": "/docs"}
        )

    async def health(self) -> Response:
        return _json(_health_body(self._health()))

    async def live(self) -> Response:
        return _json({"status": "alive"})

    async def ready(self) -> Response:
        state = self._health()
        if state.ready:
            return _json({"status": "ready"})
        return _json({"status": state.state, "detail": state.detail}, 503, headers_of(why_not(state)))

    async def ping(self) -> Response:
        state = self._health()
        if state.state == "loading":
            return Response(status_code=204)
        return _json({"status": state.state}, 200 if state.ready else 503)


def why_not(health: Health) -> CapacityError:
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
        "model_loaded": health.model in health.loaded,
        "gpu_memory_mb": health.device.get("allocated_mb"),
    }


def _json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, "application/json")
