"""``/metrics``: text for Prometheus, JSON for the text-to-image page."""

import orjson
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from api.dialect import Endpoint, Services
from api.metrics import Metrics


def endpoints(services: Services, metrics: Metrics) -> list[Endpoint]:
    options = services.options

    async def tell(request: Request) -> Response:
        if not options.metrics_enabled:
            return Response(b"", media_type=CONTENT_TYPE_PLAIN_0_0_4)
        if _wants_json(request, options.profile):
            return Response(orjson.dumps(metrics.summary()), media_type="application/json")
        return Response(generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    return [
        Endpoint(
            path="/metrics",
            handle=tell,
            methods=(method,),
            summary="Figures for Prometheus; as JSON with ?format=json or Accept: application/json",
            responses={200: {"content": {"text/plain": {}, "application/json": {}}}},
            public=True,
            documented=method == "GET",
        )
        for method in ("GET", "HEAD")
    ]


def _wants_json(request: Request, profile: str) -> bool:
    """Prometheus names text types in Accept; most other clients accept anything."""
    asked = request.query_params.get("format")
    if asked is not None:
        return asked == "json"
    accepted = request.headers.get("accept", "")
    return "application/json" in accepted or (profile == "gateway" and "text/plain" not in accepted)
