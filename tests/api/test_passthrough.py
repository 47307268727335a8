"""OpenAI requests that come as jobs of the queue: handed to their route's dialect, answered as a value."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from api.dialect import Answer, Arrival
from api.flat import FlatDialect
from api.intake import ImageIntake, IntakeOptions
from api.passthrough import Passthrough
from api.vision_tasks import VisionTasks
from core.errors import RequestError, ServingError
from core.request import InferenceRequest, Task
from core.result import InferenceResult
from serverless.execution import Execution
from serverless.jobs import JobHandler
from serverless.output import OutputGuard
from tests.api.queueing import Queue, no_upload, queueing, seeing
from tests.api.serving import CATALOG, Painter

ROUTE = "/v1/images/generations"


@dataclass(frozen=True)
class Wish:
    requests: Sequence[InferenceRequest]
    streamed: bool


class Poet:
    """A dialect of two fields: ``prompt`` and ``n`` pictures of it."""

    media_type = "application/json"

    def read(self, body: bytes, arrival: Arrival) -> object:
        raise AssertionError("its body came as values")

    async def parse(self, content: object, arrival: Arrival) -> Wish:
        assert isinstance(content, dict)
        assert arrival.path == ROUTE
        if "prompt" not in content:
            raise RequestError("invalid_parameter", "prompt is required", param="prompt")
        spec = CATALOG.get("artist")
        requests = [
            spec.request(
                id=f"{arrival.id}/{number}",
                task=Task.GENERATE,
                prompt=content["prompt"],
                images=(),
                seed=number,
            )
            for number in range(content.get("n", 1))
        ]
        return Wish(requests, content.get("stream", False))

    async def render(self, call: Wish, results: Sequence[InferenceResult]) -> Answer:
        return Answer(
            orjson.dumps({"created": 1, "data": [{"seed": each.seed} for each in results]}),
            media_type=self.media_type,
        )

    def refuse(self, error: ServingError, arrival: Arrival) -> Answer:
        raise AssertionError("jobs word their own errors")

    def streams(self, call: Wish) -> bool:
        return call.streamed


@pytest.fixture(scope="module")
def poet() -> Poet:
    return Poet()


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory, poet: Poet) -> Iterator[Queue]:
    with queueing(tmp_path_factory.mktemp("jobs"), passthrough=Passthrough({ROUTE: poet})) as running:
        yield running


def asked(queue: Queue, openai_input: object, route: object = ROUTE, **beside: object) -> Any:
    return queue.ended(queue.run({"openai_route": route, "openai_input": openai_input} | beside))


@pytest.mark.parametrize("route", [ROUTE, f"{ROUTE}/", f"/openai{ROUTE}", f"{ROUTE}?api-version=1"])
def test_the_routes_answer_is_the_output(queue: Queue, route: str) -> None:
    """All pictures of one request, in their order; the route as any client may have called it."""
    job = asked(queue, {"prompt": "a house", "n": 3}, route)
    assert job["output"] == {"created": 1, "data": [{"seed": 0}, {"seed": 1}, {"seed": 2}]}


@pytest.mark.parametrize(
    ("job_input", "code", "words"),
    [
        ({"openai_route": "/v1/chat/completions", "openai_input": {}}, "invalid_parameter", ROUTE),
        ({"openai_route": 3, "openai_input": {}}, "invalid_parameter", ROUTE),
        ({"openai_route": ROUTE}, "invalid_parameter", "openai_input"),
        ({"openai_input": {}}, "invalid_parameter", "openai_route"),
        ({"openai_route": ROUTE, "openai_input": {}, "seed": 1}, "unknown_field", "seed"),
        ({"openai_route": ROUTE, "openai_input": {}}, "invalid_parameter", "prompt is required"),
        (
            {"openai_route": ROUTE, "openai_input": {"prompt": "x", "stream": True}},
            "invalid_parameter",
            "stream",
        ),
    ],
)
def test_what_cannot_be_is_a_failed_job(
    queue: Queue, job_input: dict[str, object], code: str, words: str
) -> None:
    """In the words of every other job: a string, and a code beside it."""
    job = queue.ended(queue.run(job_input))
    assert (job["status"], job["code"]) == ("FAILED", code)
    assert words in job["error"]


def test_what_is_no_json_cannot_be_an_output(queue: Queue, poet: Poet) -> None:
    """A job's answer is a value."""
    poet.media_type = "image/png"
    try:
        assert asked(queue, {"prompt": "x"})["code"] == "pipeline_error"
    finally:
        poet.media_type = "application/json"


@pytest.mark.parametrize(("room", "status"), [(0, "COMPLETED"), (-1, "FAILED")])
def test_an_output_over_the_limit_says_so(tmp_path: Path, poet: Poet, room: int, status: str) -> None:
    """The platform would drop it without a word. It is measured as the route wrote it, not written again."""
    limit = len(b'{"created":1,"data":[{"seed":0},{"seed":1}]}') + room
    with queueing(tmp_path, passthrough=Passthrough({ROUTE: poet}), output_limit=limit) as queue:
        job = asked(queue, {"prompt": "x", "n": 2})
    assert (job["status"], job.get("code")) == (status, "output_too_large" if room else None)


def test_the_worker_on_runpod_answers_the_same(poet: Poet) -> None:
    """RunPod turns calls of ``/v2/{id}/openai/v1/…`` into such jobs."""

    async def tell(job_id: str, update: dict[str, object]) -> None: ...

    async def scenario() -> None:
        with ImageIntake(IntakeOptions(codec_threads=1)) as intake:
            flat = FlatDialect(catalog=CATALOG, intake=intake)
            guard = OutputGuard(flat.render_output, 18_000_000, None, no_upload)
            vision = VisionTasks(seeing(Painter(), intake, CATALOG))
            handler = JobHandler(Execution(Painter(), flat, guard, Passthrough({ROUTE: poet}), vision), tell)
            asked = {"openai_route": ROUTE, "openai_input": {"prompt": "x", "n": 2}}
            answer = await handler({"id": "a", "input": asked})
            assert answer == {"created": 1, "data": [{"seed": 0}, {"seed": 1}]}
            refused = await handler({"id": "b", "input": asked | {"openai_input": {}}})
            assert (refused["error"], refused["code"]) == ("prompt is required", "invalid_parameter")

    asyncio.run(scenario())
