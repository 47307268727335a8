"""What balancers, platforms and people ask about this process; none of it waits for a model."""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api.dialect import Endpoint, Services
from api.errors import headers_of
from api.health_words import body_of
from api.vision_kinds import kinds_of
from api.welcome import page
from core.errors import CapacityError
from core.service import Health
from core.version import VERSION

Answering = Callable[[], Awaitable[Response]]


def endpoints(services: Services) -> list[Endpoint]:
    probes = Probes(services)
    table: list[tuple[str, Answering, str, dict[int | str, dict[str, Any]]]] = [
        ("/health", probes.health(services.options.profile), "State in full; always 200", {}),
        *(
            (f"/{profile}/health", probes.health(profile), f"/health as the {profile} server words it", {})
            for profile in ("firered", "vision", "sdxl")
        ),
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
        *(
            Endpoint(
                path="/",
                handle=probes.root,
                methods=(method,),
                summary="What is served here; a page for browsers",
                responses={200: {"content": {"application/json": {}, "text/html": {}}}},
                public=True,
                documented=method == "GET",
            )
            for method in ("GET", "HEAD")
        ),
        *_probes(table),
    ]


def _probes(table: list[tuple[str, Answering, str, dict[int | str, dict[str, Any]]]]) -> list[Endpoint]:
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


def _without_request(answer: Answering) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        return await answer()

    return handle


class Probes:
    def __init__(self, services: Services) -> None:
        self._catalog = services.catalog
        self._health = services.health
        self._stats = services.stats

    async def root(self, request: Request) -> Response:
        models = [spec.name for spec in self._catalog]
        state = self._health()
        if "text/html" in request.headers.get("accept", ""):
            return Response(page(self._catalog.default.name, models, state.state), media_type="text/html")
        return _json(
            {
                "service": "batchmux",
                "message": "batchmux makes, edits and looks at images",
                "status": state.state,
                "model": self._catalog.default.name,
                "models": models,
                "version": VERSION,
                "docs": "/docs",
            }
        )

    def health(self, profile: str) -> Answering:
        async def answer() -> Response:
            health = self._health()
            body = body_of(profile, health, self._stats().models.memory)
            if profile == "vision":  # its clients know kinds of models, and not their names
                body["loaded_models"] = kinds_of(self._catalog, health.loaded)
            return _json(body)

        return answer

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


def _json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, "application/json")
