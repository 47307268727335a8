"""The test bed itself: what it is to notice, it notices."""

import asyncio
import base64
import io

import pytest
from aiohttp import ClientSession
from PIL import Image as Pillow

from tests.serverless.edits import is_own, job
from tests.serverless.job_server import JobServer
from tests.serverless.painting import colour


def answer(prompt: str, painted: str) -> dict[str, object]:
    out = io.BytesIO()
    Pillow.new("RGB", (64, 48), colour(painted, 1, 4)).save(out, "PNG")
    return {"image": base64.b64encode(out.getvalue()).decode(), "prompt": prompt, "seed": 1}


def test_a_picture_of_another_job_is_seen() -> None:
    """Otherwise "each with its own picture" would hold by itself."""
    asked = job("a", "mine")
    assert is_own(asked, answer("mine", painted="mine"))
    assert not is_own(asked, answer("mine", painted="another's"))
    assert not is_own(asked, answer("another's", painted="mine"))
    assert not is_own(job("a", "mine", width=80), answer("mine", painted="mine"))


def test_a_doubled_answer_and_a_late_update_are_seen() -> None:
    """The two ways in which a finished job can change again."""

    async def main() -> None:
        async with JobServer() as server, ClientSession() as session:
            done = f"{server.base}/job-done/worker-1/a?isStream=false"
            await session.post(done, data='{"output": {}}')
            assert server.answer("a") == {"output": {}}
            assert server.reopened == []
            await session.post(done, data='{"status": "IN_PROGRESS", "output": {}}')
            assert server.reopened == ["a"]
            await session.post(done, data='{"output": {}}')
            with pytest.raises(AssertionError, match="answered 2 times"):
                server.answer("a")

    asyncio.run(main())


def test_a_job_is_not_handed_to_a_client_that_left() -> None:
    """Otherwise "the late job stays queued" could not hold for any worker."""

    async def main() -> None:
        async with JobServer() as server, ClientSession() as session:
            poll = asyncio.create_task(session.get(f"{server.base}/job-take/worker-1"))
            await server.until(lambda: server.polls)
            poll.cancel()
            await asyncio.wait({poll})
            await server.until(lambda: not server.polls)
            server.add([job("a")])
            assert (await session.get(f"{server.base}/job-take/worker-1")).status == 200
            assert server.taken == ["a"], "only the second poll got it"

    asyncio.run(main())
