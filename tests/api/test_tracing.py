"""Spans: one for a request, one for its generation, and nothing private in either."""

import asyncio
import http.server
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from api.tracing import Tracing
from core.errors import ExecutionError
from core.request import InferenceRequest
from core.result import InferenceResult, OnProgress
from tests.api.serving import png, serving, text
from tests.api.test_stream import REQUEST, RESULT

WISHES = {"prompt": "a secret wish", "image_base64": text(png()), "seed": 5, "width": 96, "height": 64}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collected:
    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(provider)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()


def test_a_request_has_a_span_and_its_generation_one_inside() -> None:
    """Under the caller's own trace, so that his picture shows ours."""
    collected = Collected()
    with serving(tracing=collected.tracing) as running:
        assert running.client.run(WISHES, headers={"traceparent": PARENT}).status == 200
        running.client.get("/health")
    generation, request = collected.spans
    assert (generation.name, request.name) == ("generate painter", "POST /run")
    assert generation.parent is not None
    assert generation.parent.span_id == request.context.span_id
    assert f"{request.context.trace_id:032x}" == PARENT.split("-")[1]
    assert generation.attributes is not None
    assert request.attributes is not None
    assert generation.attributes["batchmux.batch_size"] == 3
    assert request.attributes["http.response.status_code"] == 200
    assert "secret" not in f"{request.to_json()}{generation.to_json()}"


def test_a_fault_marks_both_spans_with_its_code() -> None:
    """A trace is opened to find where it failed."""
    collected = Collected()
    with serving(tracing=collected.tracing) as running:
        running.painter.fault = ExecutionError("pipeline_error", "m")
        assert running.client.run(WISHES).status == 500
    assert [span.status.description for span in collected.spans] == ["pipeline_error"] * 2
    assert not any(span.events for span in collected.spans)  # those would hold tracebacks


def test_generations_of_one_batch_are_linked() -> None:
    """Who slowed me down is the question that batching raises."""
    collected = Collected()

    async def submit(request: InferenceRequest, on_progress: OnProgress | None = None) -> InferenceResult:
        await asyncio.sleep(0)  # both have begun
        return replace(RESULT, id=request.id, mates=("unknown", "b" if request.id == "a" else "a"))

    async def main() -> None:
        traced = collected.tracing.traced(submit)
        await asyncio.gather(*(traced(replace(REQUEST, id=name)) for name in ("a", "b")))

    asyncio.run(main())
    first, second = collected.spans
    assert [link.context.span_id for link in first.links] == [second.context.span_id]
    assert [link.context.span_id for link in second.links] == [first.context.span_id]


def test_spans_reach_a_collector() -> None:
    """The address is the standard variable's, to which the path of the signal is added."""
    received: list[tuple[str, int]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            received.append((self.path, len(self.rfile.read(length))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        tracing = Tracing.to(f"http://127.0.0.1:{server.server_port}/")
        with serving(tracing=tracing) as running:
            assert running.client.run(WISHES).status == 200
        tracing.close()
        server.shutdown()
        thread.join(10)
    assert [path for path, _ in received] == ["/v1/traces"]
    assert received[0][1] > 100
