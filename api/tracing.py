"""``Tracing``: a span for every request that makes work, and one for each generation, sent by OTLP.

The only module that imports OpenTelemetry; it is imported only where a collector is named.
"""

from collections import OrderedDict
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Receive, Scope, Send

from api.visit import visit_of
from core.errors import ServingError
from core.request import InferenceRequest
from core.result import InferenceResult, OnProgress
from core.service import Submit

_REMEMBERED: Final = 1024  # generations that a later one can be linked to
_PROPAGATOR: Final = TraceContextTextMapPropagator()


class Tracing:
    """Attributes hold figures and codes, never a prompt, a picture or a key."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("batchmux")
        self._contexts: OrderedDict[str, SpanContext] = OrderedDict()  # by the request's id

    @classmethod
    def to(cls, endpoint: str) -> "Tracing":
        """``endpoint``: as OTEL_EXPORTER_OTLP_ENDPOINT has it, without ``/v1/traces``."""
        provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "batchmux"}))
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def traced(self, submit: Submit) -> Submit:
        """The same port. A generation's span is linked to those it shared steps with."""

        async def tracing(
            request: InferenceRequest, on_progress: OnProgress | None = None
        ) -> InferenceResult:
            with self._tracer.start_as_current_span(
                f"generate {request.model}", record_exception=False, set_status_on_exception=False
            ) as span:
                self._remember(request.id, span.get_span_context())
                span.set_attributes({"batchmux.job": request.id, "batchmux.model": request.model})
                try:
                    result = await submit(request, on_progress)
                except ServingError as error:
                    span.set_status(Status(StatusCode.ERROR, error.code))
                    raise
                span.set_attributes(
                    {
                        "batchmux.steps": result.steps,
                        "batchmux.batch_size": result.batch_size,
                        "batchmux.queue_seconds": result.queue_seconds,
                        "batchmux.inference_seconds": result.inference_seconds,
                    }
                )
                for mate in result.mates:
                    if (context := self._contexts.get(mate)) is not None:
                        span.add_link(context, {"batchmux.job": mate})
                return result

        return tracing

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Inside the one that opens the visit. Probes and scrapes leave no span."""

        async def spanning(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or (visit := visit_of(scope)).public:
                await app(scope, receive, send)
                return
            path = "unknown path" if visit.endpoint is None else visit.endpoint.path
            carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            with self._tracer.start_as_current_span(
                f"{visit.method} {path}", context=_PROPAGATOR.extract(carrier), kind=SpanKind.SERVER
            ) as span:
                await app(scope, receive, send)
                span.set_attributes(
                    {
                        "http.request.method": visit.method,
                        "http.route": path,
                        "http.response.status_code": visit.status,
                        "batchmux.dialect": visit.dialect,
                        "batchmux.request": visit.shown_id,
                    }
                )
                if visit.status >= 500:
                    span.set_status(Status(StatusCode.ERROR, visit.code))

        return spanning

    def _remember(self, job_id: str, context: SpanContext) -> None:
        self._contexts[job_id] = context
        if len(self._contexts) > _REMEMBERED:
            self._contexts.popitem(last=False)
