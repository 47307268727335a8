"""The queue before the replicas: bounded, timed, and nothing in it lost."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from core.errors import CapacityError, ExecutionError, RequestError
from core.request import Image, InferenceRequest
from core.result import InferenceResult, OnProgress, Progress
from deploy.rayserve.waiting import Waiting
from tests.fakes import Clock, make_request, paint


class Far:
    """The replicas: they take a request when told to, and answer it when told to."""

    def __init__(self) -> None:
        self.tells: dict[str, OnProgress] = {}
        self.answers: dict[str, asyncio.Future[InferenceResult]] = {}

    async def __call__(
        self, request: InferenceRequest, on_progress: OnProgress | None = None
    ) -> InferenceResult:
        assert on_progress is not None
        self.tells[request.id] = on_progress
        self.answers[request.id] = asyncio.get_running_loop().create_future()
        return await self.answers[request.id]

    def begin(self, id: str) -> None:
        self.tells[id](Progress(state="running", step=1, steps=4))

    def answer(self, id: str) -> None:
        picture = paint(make_request(id), 4)
        result = InferenceResult(id=id, output=picture, model="paint", seed=0, steps=4)
        self.answers[id].set_result(result)


Task = asyncio.Future[InferenceResult]


def play(
    most: int, scene: Callable[[Far, Waiting, Callable[[str], Awaitable[Task]]], Awaitable[None]]
) -> None:
    async def played() -> None:
        far = Far()
        waiting = Waiting(far, most=most, clock=Clock())

        async def enter(id: str) -> Task:
            task = asyncio.ensure_future(waiting(make_request(id)))
            await asyncio.sleep(0)
            return task

        await scene(far, waiting, enter)

    asyncio.run(played())


def test_one_more_than_may_wait_is_refused() -> None:
    """What has begun waits no more, so it leaves room for another."""

    async def scene(far: Far, waiting: Waiting, enter: Callable[[str], Awaitable[Task]]) -> None:
        kept = [await enter("a"), await enter("b")]
        with pytest.raises(CapacityError) as caught:
            await waiting(make_request("c"))
        assert caught.value.code == "queue_full"
        far.begin("a")
        waiting.admit()
        kept.append(await enter("d"))
        with pytest.raises(CapacityError):
            waiting.admit()
        for id, task in zip("abd", kept, strict=True):
            far.answer(id)
            await task
        assert waiting.counts == {
            **{"accepted": 3, "queued": 0, "running": 0},
            **{"succeeded": 3, "failed": 0, "cancelled": 0, "expired": 0},
        }

    play(2, scene)


def test_the_pace_of_answers_says_when_to_come_again() -> None:
    """Two that wait, ten seconds from answer to answer: room in about twenty."""

    async def scene() -> None:
        far, clock = Far(), Clock()
        waiting = Waiting(far, most=2, clock=clock)
        for id in "ab":
            task = asyncio.ensure_future(waiting(make_request(id)))
            await asyncio.sleep(0)
            clock.advance(10)
            far.answer(id)
            await task
        tasks = [asyncio.ensure_future(waiting(make_request(id))) for id in "cd"]
        await asyncio.sleep(0)
        with pytest.raises(CapacityError) as caught:
            waiting.admit()
        assert caught.value.retry_after == 20
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    asyncio.run(scene())


def test_everyone_has_a_place() -> None:
    """A caller that watches sees how many are before it, and then its steps."""

    async def scene(far: Far, waiting: Waiting, enter: Callable[[str], Awaitable[Task]]) -> None:
        tasks = [await enter(id) for id in "abc"]
        place = waiting.progress("c")
        assert place is not None
        assert (place.state, place.position) == ("queued", 2)
        far.begin("a")
        place = waiting.progress("c")
        assert place is not None
        assert place.position == 1
        assert waiting.progress("a") == Progress(state="running", step=1, steps=4)
        assert waiting.progress("nobody") is None
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert waiting.counts["cancelled"] == 3

    play(9, scene)


def test_two_live_requests_have_two_ids() -> None:
    """Else the end of one would be taken for the other's."""

    async def scene(far: Far, waiting: Waiting, enter: Callable[[str], Awaitable[Task]]) -> None:
        task = await enter("a")
        with pytest.raises(ValueError, match="live"):
            await waiting(make_request("a"))
        far.answer("a")
        await task
        assert waiting.counts["accepted"] == 1

    play(9, scene)


def test_a_deadline_holds_while_nobody_has_taken_the_request() -> None:
    """No replica's clock runs for what no replica has."""

    async def scene() -> None:
        waiting = Waiting(Far(), most=2)
        with pytest.raises(ExecutionError) as caught:
            await waiting(make_request("a", timeout=0.01))
        assert caught.value.code == "deadline_exceeded"
        assert waiting.counts["expired"] == waiting.counts["accepted"] == 1

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (RequestError("invalid_parameter", "no"), "failed"),
        (RequestError("cancelled", "no"), "cancelled"),
        (ExecutionError("deadline_exceeded", "no"), "expired"),
        (KeyError("a bug"), "failed"),
    ],
)
def test_every_end_is_counted_once(error: Exception, state: str) -> None:
    """accepted = succeeded + failed + cancelled + expired + queued + running"""

    async def refuse(request: InferenceRequest, on_progress: OnProgress | None = None) -> InferenceResult:
        raise error

    async def scene() -> None:
        waiting = Waiting(refuse, most=2)
        with pytest.raises(type(error)):
            await waiting(make_request("a"))
        assert {name for name, count in waiting.counts.items() if count} == {"accepted", state}

    asyncio.run(scene())


def test_a_preview_is_told_and_not_kept() -> None:
    """Whoever asks for the place in the queue would be sent a picture, and memory would hold it."""

    async def scene() -> None:
        far, told = Far(), list[Progress]()
        waiting = Waiting(far, most=2)
        task = asyncio.ensure_future(waiting(make_request("a"), told.append))
        await asyncio.sleep(0)
        small = Image(pixels=b"abc", width=1, height=1)
        far.tells["a"](Progress(state="running", step=1, steps=4, preview=small))
        assert told[0].preview == small
        kept = waiting.progress("a")
        assert kept is not None
        assert kept.preview is None
        far.answer("a")
        await task

    asyncio.run(scene())
