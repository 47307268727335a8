"""What must hold before the first job is taken, as the SDK's fitness checks.

A check that raises ends the process, and the platform starts another one: right for a broken device,
a costly loop for a fault that a fresh start does not mend. Those are logged, and each job is then
answered with the same sentence, because the mux meets the same fault.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Future

from core.errors import DeviceLost, ServingError
from core.request import Image, InferenceRequest, Task
from core.service import Submit
from core.spec import PipelineSpec
from core.vision import PLAINEST

log = logging.getLogger(__name__)

Check = Callable[[], Awaitable[None]]

WARM_UP_SECONDS = 300.0
WARM_UP_STEPS = 2  # with one step the stock solver's schedule is degenerate


def checks(
    weights: Future[None], submit: Submit, spec: PipelineSpec, *, warm_up_seconds: float = WARM_UP_SECONDS
) -> list[Check]:
    """In the order in which they are to run.

    weights: becomes done when the default model is loaded.
    warm_up_seconds: after which the warm-up is taken for hung; the check then raises.
    """

    async def weights_are_loaded() -> None:
        loaded: asyncio.Future[None] = asyncio.wrap_future(weights)
        await _unless_permanent(loaded)

    async def warm_up_succeeds() -> None:
        if weights.exception() is None:
            request = _smallest(spec, warm_up_seconds)
            await _unless_permanent(submit(request))

    return [weights_are_loaded, warm_up_succeeds]


def _smallest(spec: PipelineSpec, timeout: float) -> InferenceRequest:
    grey = Image(pixels=b"\x80" * (3 * 64 * 64), width=64, height=64, digest="warm-up")
    if spec.vision is not None:
        task = min(spec.tasks)
        return spec.look(id="warm-up", image=grey, ask=PLAINEST[task], timeout=timeout)
    edits = Task.EDIT in spec.tasks
    return spec.request(
        id="warm-up",
        task=Task.EDIT if edits else Task.GENERATE,
        prompt="warm-up",
        images=(grey,) if edits else (),
        width=spec.min_side,
        height=spec.min_side,
        steps=WARM_UP_STEPS,
        cfg=1.0,
        seed=0,
        timeout=timeout,
    )


async def _unless_permanent(work: Awaitable[object]) -> None:
    try:
        await work
    except DeviceLost:
        raise
    except ServingError as error:
        if error.code == "deadline_exceeded":
            raise
        log.error("%s; every job will be answered with this until it is mended", error.message)
