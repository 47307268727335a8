"""One job in, one answer out, whatever happens in between."""

import asyncio
import base64
import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from api.budget import Lease
from api.intake import Fetch, ImageIntake, IntakeOptions
from api.vision_tasks import VisionTasks
from core.errors import CapacityError, OutOfDeviceMemory
from core.request import InferenceRequest
from core.result import InferenceResult, OnProgress, Progress
from serverless.execution import Execution
from serverless.jobs import JobHandler
from serverless.output import OutputGuard
from tests.api.queueing import NO_ROUTES, seeing
from tests.serverless.edits import dialect, is_own, job, photograph
from tests.serverless.painting import CATALOG, painted

Scenario = Callable[["Bench"], Awaitable[None]]


class Bench:
    """A handler around a ``submit`` that waits at ``gate``, and keeps what it was asked."""

    def __init__(self, intake: ImageIntake, progress_seconds: float, remember_bytes: int) -> None:
        self.gate = asyncio.Event()
        self.submitted: list[InferenceRequest] = []
        self.arrived = asyncio.Event()
        self.cancelled: list[str] = []
        self.told: list[dict[str, object]] = []
        self.telling = asyncio.Event()
        self.tell_gate = asyncio.Event()
        self.on_progress: OnProgress | None = None
        self.fault: BaseException | None = None
        language = dialect(intake)
        guard = OutputGuard(language.render_output, 18_000_000, None, _no_upload)
        self.handler = JobHandler(
            Execution(
                self.submit, language, guard, NO_ROUTES, VisionTasks(seeing(self.submit, intake, CATALOG))
            ),
            self.tell,
            progress_seconds=progress_seconds,
            remember=2,
            remember_bytes=remember_bytes,
        )

    async def submit(
        self, request: InferenceRequest, on_progress: OnProgress | None = None
    ) -> InferenceResult:
        self.submitted.append(request)
        self.on_progress = on_progress
        self.arrived.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        if self.fault is not None:
            raise self.fault
        return painted(request)

    async def tell(self, job_id: str, update: dict[str, object]) -> None:
        self.telling.set()
        await self.tell_gate.wait()
        self.told.append(update)


async def _no_upload(url: str, body: bytes, content_type: str) -> None:
    raise AssertionError("nothing is to be uploaded here")


def run(
    scenario: Scenario,
    *,
    progress_seconds: float = 60.0,
    remember_bytes: int = 2**26,
    fetch: Fetch | None = None,
) -> None:
    async def main() -> None:
        with ImageIntake(IntakeOptions(), fetch) as intake:
            async with asyncio.timeout(20):
                await scenario(Bench(intake, progress_seconds, remember_bytes))

    asyncio.run(main())


def test_an_answer_is_the_flat_dialects() -> None:
    """Clients of the HTTP routes and of RunPod read the same fields."""

    async def scenario(bench: Bench) -> None:
        bench.gate.set()
        asked = job("a", num_inference_steps=3, width=48, height=32)
        answer = await bench.handler(asked)
        assert is_own(asked, answer)
        assert {"image", "prompt", "num_inference_steps", "lightning_enabled", "seed"} <= answer.keys()

    run(scenario)


def test_a_job_may_ask_for_a_picture_of_a_text() -> None:
    """The worker reads the same dialect as HTTP: what the model's row allows, and no more."""

    async def scenario(bench: Bench) -> None:
        bench.gate.set()
        asked = {"id": "a", "input": {"prompt": "a house", "model": "imagining", "width": 48, "height": 32}}
        answer = await bench.handler(asked)
        assert is_own(asked, answer)
        assert bench.submitted[0].images == ()
        masked = job("b", model="imagining", mask=photograph(), strength=1)
        assert is_own(masked, await bench.handler(masked))
        assert bench.submitted[1].mask == bench.submitted[1].images[0]
        refused = await bench.handler(job("c", model="imagining", loras=[{"id": "comic"}]))
        assert (refused["code"], refused["param"]) == ("invalid_parameter", "loras")

    run(scenario)


def test_a_missing_prompt_falls_back() -> None:
    """The first worker's clients may leave it out."""

    async def scenario(bench: Bench) -> None:
        bench.gate.set()
        asked = job("a")
        del asked["input"]["prompt"]
        assert (await bench.handler(asked))["prompt"] == "Enhance the image"

    run(scenario)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"input": None}, "invalid_parameter", '"input" object'),
        ({"input": "draw a cat"}, "invalid_parameter", '"input" object'),
        ({"input": {}}, "invalid_parameter", "image_url or image_base64"),
        ({"input": {"image_base64": "!"}}, "invalid_image", "base64"),
        ({"input": {"image_base64": "", "promt": "x"}}, "unknown_field", "'prompt'"),
        (
            {"input": {"openai_route": "/v1/images/edits", "openai_input": {}}},
            "invalid_parameter",
            "openai_route",
        ),
        ({"input": {"image_base64": "aGk=", "prompt": "\ud800"}}, "invalid_parameter", "Unicode"),
        ({"input": {"image_base64": "aGk=", "num_inference_steps": True}}, "invalid_parameter", "integer"),
        ({"input": {"image_base64": "aGk=", "true_cfg_scale": float("nan")}}, "invalid_parameter", "finite"),
        ({"s3Config": {"bucketName": "b"}}, "invalid_parameter", "endpointUrl"),
        ({"s3Config": "s3://b"}, "invalid_parameter", "s3Config"),
    ],
)
def test_a_job_that_cannot_be_understood_is_answered(change: dict[str, Any], code: str, words: str) -> None:
    """Anything raised here would reach the caller as a traceback with this machine's name in it."""

    async def scenario(bench: Bench) -> None:
        bench.gate.set()
        answer = await bench.handler(job("a") | change)
        assert isinstance(answer["error"], str)
        assert answer["code"] == code
        assert words in answer["message"]
        json.dumps(answer, allow_nan=False).encode()
        assert bench.submitted == []

    run(scenario)


def test_a_job_without_input_is_answered() -> None:
    """The platform's batch endpoint may deliver one."""

    async def scenario(bench: Bench) -> None:
        assert (await bench.handler({"id": "a"}))["code"] == "invalid_parameter"

    run(scenario)


@pytest.mark.parametrize(
    ("fault", "code", "retryable"),
    [
        (CapacityError("queue_full", "256 wait already"), "queue_full", True),
        (OutOfDeviceMemory(), "gpu_out_of_memory", False),
        (RuntimeError("secret /root/path"), "pipeline_error", False),
    ],
)
def test_a_failure_is_plain_text_with_a_code_beside(fault: Exception, code: str, retryable: bool) -> None:
    """The SDK's clients show ``error`` as it is, and drop a dict."""

    async def scenario(bench: Bench) -> None:
        bench.gate.set()
        bench.fault = fault
        answer = await bench.handler(job("a"))
        assert (answer["code"], answer["retryable"]) == (code, retryable)
        assert "secret" not in answer["error"]

    run(scenario)


def test_a_job_delivered_twice_runs_once_and_both_are_answered() -> None:
    """The platform delivers again when it has lost sight of a worker."""

    async def scenario(bench: Bench) -> None:
        asked = job("a")
        twice = [asyncio.create_task(bench.handler(asked)) for _ in range(2)]
        await bench.arrived.wait()
        bench.gate.set()
        first, second = await asyncio.gather(*twice)
        assert first == second
        assert first is not second, "the SDK takes keys out of what it gets"
        first.clear()
        assert await bench.handler(asked) == second, "also when it comes after the answer"
        assert len(bench.submitted) == 1

    run(scenario)


def test_equal_ids_with_other_inputs_are_other_jobs() -> None:
    """A remembered answer to another question would be a wrong picture."""

    async def scenario(bench: Bench) -> None:
        bench.gate.set()
        first, other = job("a", "first"), job("a", "other")
        assert is_own(first, await bench.handler(first))
        assert is_own(other, await bench.handler(other))

    run(scenario)


def test_a_stopped_job_that_comes_again_at_once_is_run() -> None:
    """It must not be tied to the execution that is still being cancelled."""

    async def scenario(bench: Bench) -> None:
        task = asyncio.create_task(bench.handler(job("a")))
        await bench.arrived.wait()
        task.cancel()
        bench.gate.set()
        again = asyncio.create_task(bench.handler(job("a")))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert "image" in await again

    run(scenario)


def test_a_failed_job_that_comes_again_is_tried_again() -> None:
    """RunPod's retry keeps the id."""

    async def scenario(bench: Bench) -> None:
        bench.gate.set()
        bench.fault = CapacityError("queue_full", "full")
        assert "error" in await bench.handler(job("a"))
        bench.fault = None
        assert "image" in await bench.handler(job("a"))
        first, second = bench.submitted
        assert first.id != second.id

    run(scenario)


def test_only_the_latest_answers_are_remembered() -> None:
    """They are megabytes each."""

    async def scenario(bench: Bench) -> None:
        bench.gate.set()
        for job_id in ("a", "b", "c", "a"):
            await bench.handler(job(job_id))
        assert [request.id.split("/")[0] for request in bench.submitted] == ["a", "b", "c", "a"]

    run(scenario)


def test_remembered_answers_are_few_megabytes() -> None:
    """Two of the largest that the platform takes would be 36; the latest is kept in any case."""

    async def scenario(bench: Bench) -> None:
        bench.gate.set()
        for job_id in ("a", "b", "b", "a"):
            await bench.handler(job(job_id))
        assert [request.id.split("/")[0] for request in bench.submitted] == ["a", "b", "a"]

    run(scenario, remember_bytes=1)


def test_an_input_is_not_kept_after_its_answer() -> None:
    """Its pictures are as large as the answer; what it was can be told from a digest."""

    async def scenario(bench: Bench) -> None:
        bench.gate.set()
        asked = job("a")
        before = sys.getrefcount(asked["input"])
        await bench.handler(asked)
        gc.collect()
        after = sys.getrefcount(asked["input"])
        assert after == before

    run(scenario)


def test_a_timeout_counts_from_the_arrival() -> None:
    """Half of it went by while the picture was fetched: the mux is given the other half."""
    picture = base64.b64decode(photograph())

    async def slow(url: str, lease: Lease) -> bytes:
        await asyncio.sleep(0.3)
        return picture

    async def scenario(bench: Bench) -> None:
        bench.gate.set()
        answer = await bench.handler({"id": "a", "input": {"image_url": "http://a.example/", "timeout": 5}})
        assert "image" in answer
        (request,) = bench.submitted
        assert request.timeout is not None
        assert 0 < request.timeout <= 4.7

    run(scenario, fetch=slow)


def test_a_timeout_ends_the_fetch() -> None:
    """It alone may take longer than the answer is of use."""
    left = asyncio.Event()

    async def never(url: str, lease: Lease) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return b""

    async def scenario(bench: Bench) -> None:
        answer = await bench.handler({"id": "a", "input": {"image_url": "http://a.example/", "timeout": 0.2}})
        assert (answer["code"], answer["retryable"]) == ("deadline_exceeded", False)
        assert "timeout passed" in answer["error"]
        assert bench.submitted == []
        await left.wait()

    run(scenario, fetch=never)


def test_a_timeout_counts_while_the_loop_is_busy() -> None:
    """What is late already when the pictures are there is not submitted: the mux would count anew."""
    picture = base64.b64decode(photograph())

    async def busy(url: str, lease: Lease) -> bytes:
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            pass
        return picture

    async def scenario(bench: Bench) -> None:
        bench.gate.set()
        answer = await bench.handler(
            {"id": "a", "input": {"image_url": "http://a.example/", "timeout": 0.02}}
        )
        assert answer["code"] == "deadline_exceeded"
        assert bench.submitted == []

    run(scenario, fetch=busy)


def test_a_stop_signal_drops_the_row_and_is_passed_on() -> None:
    """The SDK cancels the task of a stopped job and posts nothing for it."""

    async def scenario(bench: Bench) -> None:
        task = asyncio.create_task(bench.handler(job("a")))
        await bench.arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert bench.cancelled == [bench.submitted[0].id]

    run(scenario)


def test_stopping_one_of_two_deliveries_answers_the_other() -> None:
    """The SDK knows only the later task of an id; the earlier one must not wait for ever."""

    async def scenario(bench: Bench) -> None:
        asked = job("a")
        first = asyncio.create_task(bench.handler(asked))
        await bench.arrived.wait()
        second = asyncio.create_task(bench.handler(asked))
        await asyncio.sleep(0)
        second.cancel()
        assert (await first)["code"] == "cancelled"

    run(scenario)


def test_a_cancellation_from_below_is_an_answer() -> None:
    """An escaping CancelledError would lose the job without a word."""

    async def scenario(bench: Bench) -> None:
        bench.gate.set()
        bench.fault = asyncio.CancelledError()
        assert (await bench.handler(job("a")))["code"] == "cancelled"

    run(scenario)


def test_progress_is_told_and_ended_before_the_answer() -> None:
    """An update that lands after the result re-opens the job on the platform."""

    async def scenario(bench: Bench) -> None:
        task = asyncio.create_task(bench.handler(job("a")))
        await bench.arrived.wait()
        assert bench.on_progress is not None
        bench.on_progress(Progress(state="running", step=1, steps=4))
        await bench.telling.wait()
        bench.gate.set()
        done, _ = await asyncio.wait({task}, timeout=0.05)
        assert not done, "the answer must wait for the update that is under way"
        bench.on_progress(Progress(state="running", step=4, steps=4))
        bench.tell_gate.set()
        assert "image" in await task
        assert bench.told == [{"state": "running", "step": 1, "steps": 4}]

    run(scenario, progress_seconds=0.01)


def test_a_short_job_tells_nothing() -> None:
    """Updates cost a connection each."""

    async def scenario(bench: Bench) -> None:
        bench.gate.set()
        task = asyncio.create_task(bench.handler(job("a")))
        await bench.arrived.wait()
        assert bench.on_progress is not None
        bench.on_progress(Progress(state="running", step=1, steps=4))
        await task
        assert not bench.telling.is_set()

    run(scenario)
