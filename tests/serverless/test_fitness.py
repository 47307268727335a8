"""What ends a worker before its first job, and what must not."""

import asyncio
from concurrent.futures import Future
from dataclasses import replace

import pytest

from batching.mux import BatchMux, BatchPolicy
from core.errors import CapacityError, DeviceLost, ServingError
from core.request import InferenceRequest, Task
from core.result import InferenceResult, OnProgress
from core.service import port
from core.spec import PipelineSpec
from core.vision import PLAINEST
from core.vision_spec import VisionSpec
from serverless.fitness import checks
from tests.serverless.painting import SPEC, PaintingPipeline, painted


class Port:
    def __init__(self, fault: ServingError | None = None) -> None:
        self.fault = fault
        self.requests: list[InferenceRequest] = []

    async def __call__(
        self, request: InferenceRequest, on_progress: OnProgress | None = None
    ) -> InferenceResult:
        self.requests.append(request)
        if self.fault:
            raise self.fault
        return painted(request)


def run(port: Port, fault: ServingError | None = None, spec: PipelineSpec = SPEC) -> None:
    weights: Future[None] = Future()
    if fault:
        weights.set_exception(fault)
    else:
        weights.set_result(None)

    async def main() -> None:
        for check in checks(weights, port, spec):
            await check()

    asyncio.run(main())


def test_a_small_edit_warms_the_model_up() -> None:
    """The first caller should not be the one to find that the model cannot run."""
    port = Port()
    run(port)
    (request,) = port.requests
    assert request.size == (SPEC.min_side, SPEC.min_side)
    assert request.steps == 2


def test_a_model_that_edits_nothing_is_warmed_up_by_a_text() -> None:
    """It would refuse the grey picture, and each start would log a fault that is none."""
    port = Port()
    run(port, spec=replace(SPEC, tasks=frozenset({Task.GENERATE})))
    (request,) = port.requests
    assert (request.task, request.images) == (Task.GENERATE, ())


@pytest.mark.parametrize("task", PLAINEST)
def test_a_vision_model_is_warmed_up_by_a_look(task: Task) -> None:
    """It makes no picture: asked for one, it would end every worker before its first job."""
    port = Port()
    run(port, spec=replace(SPEC, tasks=frozenset({task}), vision=VisionSpec(fit="square", side=64)))
    (request,) = port.requests
    assert (request.task, request.size) == (task, (64, 64))
    assert request.ask is not None


def test_a_model_that_cannot_load_does_not_end_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    """A restart would meet the same fault, at the operator's cost; each job is answered with it instead."""
    port = Port()
    run(port, CapacityError("not_ready", "set DEFAULT_MODEL=pocket-edit"))
    assert "DEFAULT_MODEL=pocket-edit; every job will be answered with this" in caplog.text
    assert port.requests == []


def test_a_failing_warm_up_does_not_end_the_worker() -> None:
    """Other requests may well work."""
    run(Port(CapacityError("gpu_out_of_memory", "too small")))


def test_a_warm_up_that_hangs_ends_the_worker() -> None:
    """Nothing else would: the worker waits for it for ever and takes no job."""
    hangs = PaintingPipeline(step_seconds=1e6)
    policy = BatchPolicy(hang_after=0.1)

    async def main(mux: BatchMux) -> None:
        loaded, warm_up = checks(mux.warm(SPEC.name), port(mux.submit), SPEC, warm_up_seconds=0.2)
        await loaded()
        with pytest.raises(ServingError) as caught:
            await asyncio.wait_for(warm_up(), 10)
        assert caught.value.code in ("deadline_exceeded", "device_lost")

    try:
        with BatchMux(lambda name: hangs, policy) as mux:
            asyncio.run(main(mux))
    finally:
        hangs.release()


def test_the_warm_up_has_minutes() -> None:
    """The first forward on a card may compile for a long time."""
    asked = Port()
    run(asked)
    assert asked.requests[0].timeout == 300


@pytest.mark.parametrize(
    ("loading", "warm_up"), [(DeviceLost(), None), (None, DeviceLost())], ids=["loading", "warm-up"]
)
def test_a_lost_device_ends_the_worker(loading: DeviceLost | None, warm_up: DeviceLost | None) -> None:
    """Another machine may have a sound one."""
    with pytest.raises(DeviceLost):
        run(Port(warm_up), loading)
