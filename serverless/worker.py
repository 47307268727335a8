"""The one module that knows the RunPod SDK (``runpod~=1.12``): its start, its loop, its local test.

Order of a start, from the SDK's ``worker.py`` and ``rp_fitness.py``: our fitness checks in the order
given, then the SDK's own (GPU, memory, disk, network), then the heartbeat process, then the loop.
A check that raises ends the process at once.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from serverless.draining import draining, misfit

log = logging.getLogger(__name__)

Handle = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
Check = Callable[[], Awaitable[None]]


def serve(
    handle: Handle,
    *,
    slots: int,
    fitness: Sequence[Check] = (),
    drain_seconds: float,
    on_limit: Callable[[], object],
    failed: Callable[[], bool],
    log_level: str,
) -> None:
    """Take jobs until SIGTERM, then finish those taken; returns when the last answer was posted.

    slots:    jobs held at once. Constant: the SDK empties the worker whenever it changes.
    on_limit: makes unfinished jobs end; called ``drain_seconds`` after SIGTERM, or at a second one.
    failed:   whether the process is to end as a failure; asked when SIGTERM comes before the loop runs.
    """
    import runpod
    from runpod.serverless import worker as sdk
    from runpod.serverless.modules import rp_scale

    problem = misfit(rp_scale.JobScaler)
    if problem is None and getattr(sdk, "rp_scale", None) is not rp_scale:
        problem = "runpod.serverless.worker does not take its scaler from rp_scale"
    if problem is None:
        rp_scale.JobScaler = draining(rp_scale.JobScaler, drain_seconds, on_limit)
    else:
        log.warning("this runpod release is not the expected one, leaving may take 90 s: %s", problem)
    _be_brief(log_level)
    for check in fitness:
        runpod.serverless.register_fitness_check(check)
    # Until the SDK's loop has its own handler nothing has been taken, so there is nothing to finish.
    # Without this, process 1 of a container would ignore the signal while the weights load.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1 if failed() else 0))
    _start(runpod, handle, slots)


def run_once(handle: Handle, job: dict[str, Any], *, log_level: str) -> None:
    """Run one job through the SDK's local path. Raises ``SystemExit``: 0, or 1 when it failed."""
    import runpod

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # process 1 of a container would ignore it
    sys.argv = [sys.argv[0], "--test_input", json.dumps(job)]
    _be_brief(log_level)
    _start(runpod, handle, 1)


def _be_brief(log_level: str) -> None:
    from runpod.serverless.modules.rp_logger import RunPodLogger

    RunPodLogger().level = log_level  # at the SDK's own default, DEBUG, it prints every answer


def _start(runpod: Any, handle: Handle, slots: int) -> None:
    async def handler(job: dict[str, Any]) -> dict[str, Any]:
        return await handle(job)

    runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda _: slots})


async def tell(job_id: str, update: dict[str, object]) -> None:
    """Post a progress update and wait until it has arrived, which ``progress_update`` does not."""
    from runpod.http_client import AsyncClientSession
    from runpod.serverless.modules.rp_http import send_result

    async with AsyncClientSession() as session:
        await send_result(session, {"status": "IN_PROGRESS", "output": update}, {"id": job_id})
