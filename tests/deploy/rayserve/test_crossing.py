"""A real mux on one side, a caller on the other, and between them only bytes, as between two machines."""

import asyncio
import pickle
from collections.abc import AsyncGenerator

import pytest

from api.stream import Event, events
from batching.mux import BatchMux, BatchPolicy
from core.errors import (
    CapacityError,
    DeviceLost,
    ExecutionError,
    OutOfDeviceMemory,
    RequestError,
    ServingError,
)
from core.request import Image, InferenceRequest
from core.result import InferenceResult
from core.service import Submit, port
from deploy.rayserve.retrying import Retrying
from tests.fakes import PaintingPipeline, Poison, Turnstile, assert_accounted, make_request, paint


def across(submit: Submit) -> Retrying:
    """Everything pickled and read again, each way."""

    async def send(request: InferenceRequest) -> AsyncGenerator[Event, None]:
        arrived = pickle.loads(pickle.dumps(request))
        async for event in events(submit, arrived, lambda job_id: None):
            yield pickle.loads(pickle.dumps(event))

    return Retrying(send, ())


@pytest.mark.parametrize(
    "error",
    [
        RequestError("invalid_parameter", "no such lora", param="loras"),
        CapacityError("not_ready", "the weights are not here", retry_after=30, retryable=False),
        OutOfDeviceMemory(),
        DeviceLost(),
        ExecutionError("deadline_exceeded", "too slow"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_whole(error: ServingError) -> None:
    """Its class and code decide the status, its fields what the caller can do about it."""

    async def refuse(request: InferenceRequest, on_progress: object = None) -> InferenceResult:
        raise error

    with pytest.raises(type(error)) as caught:
        asyncio.run(across(refuse)(make_request("a")))
    assert caught.value is not error
    assert (type(caught.value), vars(caught.value), str(caught.value)) == (
        type(error),
        vars(error),
        str(error),
    )


def test_a_poisoned_row_fails_alone() -> None:
    """Its mates, in the same step of the same replica, are answered as if it had never been there."""
    gate, poison = Turnstile(), Poison("b/1")
    pipeline = PaintingPipeline(gate, poison)
    with BatchMux(lambda model: pipeline, BatchPolicy(max_batch_size=4)) as mux:
        submit = across(port(mux.submit))

        async def ask_all() -> list[InferenceResult | BaseException]:
            asked = [asyncio.ensure_future(submit(make_request(name))) for name in ("a", "b", "c")]
            await asyncio.get_running_loop().run_in_executor(None, gate.waiting)
            gate.open()
            return await asyncio.gather(*asked, return_exceptions=True)

        first, second, third = asyncio.run(ask_all())
        assert_accounted(mux)
    assert isinstance(second, ServingError)
    assert second.code == "pipeline_error"
    for result, name in ((first, "a"), (third, "c")):
        assert isinstance(result, InferenceResult)
        assert result.id == name
        sent = make_request(f"{name}/1", prompt=f"prompt of {name}")
        assert result.image == paint(sent, sent.steps)
    assert any(len(ids) > 1 for ids in pipeline.stages("step"))


def test_pictures_cross_as_their_bytes() -> None:
    """The digest that caches are keyed by must be the same on the other side."""
    picture = Image(pixels=bytes(range(48)), width=4, height=4)
    mask = Image(pixels=bytes(48), width=4, height=4)
    request = make_request("a", images=(picture,))
    copy = pickle.loads(pickle.dumps(request))
    assert copy == request
    assert copy.images[0].digest == picture.digest != mask.digest
