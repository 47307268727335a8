"""What is sent again when a replica is lost, and what never is."""

import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest

from api.stream import Done, Event, Failed, KeepAlive
from core.errors import CapacityError, ExecutionError, RequestError, ServingError, UpstreamError
from core.request import Image, InferenceRequest
from core.result import InferenceResult, Progress
from deploy.rayserve.retrying import ATTEMPTS, Retrying
from tests.fakes import make_request


class ReplicaGone(Exception):
    """What the far side raises for a replica that died."""


class Replicas:
    """Each attempt plays the next script: events to tell, and at the end perhaps an error."""

    def __init__(self, *scripts: list[Event | Exception]) -> None:
        self.scripts = list(scripts)
        self.sent: list[InferenceRequest] = []
        self.closed = 0

    async def send(self, request: InferenceRequest) -> AsyncGenerator[Event, None]:
        self.sent.append(request)
        try:
            for event in self.scripts.pop(0):
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.closed += 1


def begun(step: int = 1) -> Progress:
    return Progress(state="running", step=step, steps=4)


def done(id: str, mates: tuple[str, ...] = ()) -> Done:
    image = Image(pixels=b"abc", width=1, height=1)
    return Done(InferenceResult(id=id, output=image, model="paint", seed=0, steps=4, mates=mates))


def submit(
    replicas: Replicas, tell: Callable[[Progress], None] | None = None
) -> tuple[InferenceResult, Retrying]:
    retrying = Retrying(replicas.send, (ReplicaGone,))
    return asyncio.run(retrying(make_request("a"), tell)), retrying


@pytest.mark.parametrize(
    "before", [[], [KeepAlive()], [begun()], [begun(1), begun(2)]], ids=["unbegun", "silent", "begun", "far"]
)
def test_a_lost_request_is_computed_elsewhere(before: list[Event]) -> None:
    """It holds its seed and has no effect but its answer, so that computing it twice is computing it once."""
    replicas = Replicas([*before, ReplicaGone()], [begun(), done("a/2")])
    result, retrying = submit(replicas)
    assert result.id == "a"
    assert [request.seed for request in replicas.sent] == [0, 0]
    assert retrying.resent == 1


def test_each_attempt_has_its_own_id() -> None:
    """A replica that was only out of reach may still hold the first, and refuses a second of the same id."""
    replicas = Replicas([ReplicaGone()], [done("a/2", ("a/2", "job/7/1"))])
    result, _ = submit(replicas)
    assert [request.id for request in replicas.sent] == ["a/1", "a/2"]
    assert result.mates == ("a", "job/7")


@pytest.mark.parametrize(
    "error",
    [
        RequestError("invalid_parameter", "no such lora", param="loras"),
        ExecutionError("pipeline_error", "it failed"),
        CapacityError("gpu_out_of_memory", "too large"),
        CapacityError("not_ready", "the weights cannot be loaded", retry_after=30),
    ],
    ids=lambda error: error.code,
)
def test_an_answer_is_final(error: ServingError) -> None:
    """A row that fails would fail on the next device too, and take its time there."""
    replicas = Replicas([begun(), Failed(error)], [done("a/2")])
    with pytest.raises(type(error)) as caught:
        submit(replicas)
    assert caught.value is error
    assert len(replicas.sent) == 1


def test_a_replica_that_shuts_down_has_begun_nothing() -> None:
    """It refused the request for its own sake; another has no such reason."""
    replicas = Replicas([Failed(CapacityError("shutting_down", "bye"))], [done("a/2")])
    assert submit(replicas)[0].id == "a"


def test_a_request_that_kills_whoever_runs_it_stops_after_three() -> None:
    """Else one picture that exhausts a machine's memory goes through all of them."""
    death: list[Event | Exception] = [begun(), ReplicaGone()]
    replicas = Replicas(*[death] * 9)
    retrying = Retrying(replicas.send, (ReplicaGone,))
    with pytest.raises(UpstreamError) as caught:
        asyncio.run(retrying(make_request("a")))
    assert (len(replicas.sent), retrying.resent) == (ATTEMPTS, ATTEMPTS - 1) == (3, 2)
    assert caught.value.code == "upstream_error"


def test_a_fault_of_ours_is_not_hidden_by_trying_again() -> None:
    """Only what says that a replica is gone is taken for it."""
    replicas = Replicas([KeyError("a bug")], [done("a/2")])
    with pytest.raises(KeyError):
        submit(replicas)
    assert len(replicas.sent) == 1


def test_silence_is_no_answer() -> None:
    """A stream that ends early must not leave its caller with nothing."""
    with pytest.raises(ExecutionError):
        submit(Replicas([begun()]))


def test_progress_goes_through_and_begins_again() -> None:
    """What the second replica tells is true of it."""
    told: list[int] = []
    submit(Replicas([begun(3), ReplicaGone()], [begun(1), done("a/2")]), lambda p: told.append(p.step))
    assert told == [3, 1]


def test_leaving_ends_what_was_sent() -> None:
    """A caller who is gone must reach the replica's mux as a cancelled job."""

    async def leave() -> Replicas:
        replicas = Replicas()
        started = asyncio.Event()

        async def forever(request: InferenceRequest) -> AsyncGenerator[Event, None]:
            try:
                yield begun()
                started.set()
                await asyncio.Event().wait()
            finally:
                replicas.closed += 1

        task = asyncio.ensure_future(Retrying(forever, (ReplicaGone,))(make_request("a")))
        await started.wait()
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled()
        return replicas

    assert asyncio.run(leave()).closed == 1
