"""``Ingress``: the HTTP application of a standalone server, its ``submit`` fulfilled by the replicas."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Any

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError, RequestCancelledError
from ray.serve.handle import DeploymentHandle

import settings
from api.intake import ImageIntake
from api.stream import Event, Failed
from core.errors import CapacityError
from core.request import InferenceRequest
from deploy.rayserve.report import Reports
from deploy.rayserve.retrying import Retrying
from deploy.rayserve.waiting import Waiting
from pipelines.registry import catalog
from serverless import modes

log = logging.getLogger("batchmux.rayserve")

# A cancel that we asked for never gets as far as being caught: whoever asked has left.
LOST = (
    *(RayActorError, NodeDiedError, WorkerCrashedError, ObjectLostError),
    *(ReplicaUnavailableError, RequestCancelledError, TaskCancelledError),
)
_REPORT_SECONDS = 2.0  # between two rounds of questions
_ANSWER_SECONDS = 5.0


class Ingress:
    """Holds no weights and imports no torch. Each has its own queue, its own job store and its own files."""

    async def __init__(self, replicas: DeploymentHandle) -> None:  # type: ignore[misc]  # Serve awaits it
        config = settings.load()
        logging.basicConfig(level=config.log_level, format="%(levelname)-7s| %(name)s | %(message)s")
        if not config.require_api_key:
            log.warning(
                "NO AUTHENTICATION: everybody who can reach Ray's HTTP port can use this fleet; "
                "set REQUIRE_API_KEY=1 and API_KEY"
            )
        rows = catalog(config.default_model, **config.row)
        self._replicas = replicas
        self._by_model: dict[str, DeploymentHandle] = {}
        self._reports = Reports(rows.default.name)
        self._retrying = Retrying(self._send, LOST)
        self._waiting = waiting = Waiting(self._retrying, most=config.max_queue)
        self._drain_seconds = config.drain_seconds
        self._open = ExitStack()
        intake = self._open.enter_context(ImageIntake(modes.intake_options(config)))
        mode = modes.Modes(settings=config, catalog=rows, submit=waiting, intake=intake)
        self._application, self._jobs = self._open.enter_context(
            mode.application(
                lambda: self._reports.health(waiting.counts),
                waiting.admit,
                self._reports.stats,
                waiting.progress,
                (self._load, self._purge),
                jobs_at_once=max(config.max_queue // 2, 1),  # the rest is for callers who wait
            )
        )
        if self._jobs is not None:
            self._jobs.start()
        await self._ask_all()
        self._asking = asyncio.ensure_future(self._keep_asking())

    def __serve_build_asgi_app__(self) -> Any:
        return self._application

    async def counts(self) -> dict[str, int]:
        """For an operator with a handle: the accounting identity, and how often a request was sent again."""
        return {**self._waiting.counts, "resent": self._retrying.resent}

    async def __del__(self) -> None:
        if not hasattr(self, "_asking"):
            return
        self._asking.cancel()
        if self._jobs is not None:
            await asyncio.wrap_future(self._jobs.drain(self._drain_seconds))
        self._open.close()

    async def _send(self, request: InferenceRequest) -> AsyncGenerator[Event, None]:
        handle = self._by_model.get(request.model)
        if handle is None:
            handle = self._replicas.options(stream=True, multiplexed_model_id=request.model)
            self._by_model[request.model] = handle
        events = handle.answer.remote(request)
        try:
            async for event in events:
                yield event
        except DeploymentUnavailableError:
            raise CapacityError(
                "not_ready", "no worker could be started; the log of the fleet says why"
            ) from None
        finally:
            events.cancel()  # nothing, once it has ended

    async def _load(self, model: str) -> None:
        """On the replica where a request for it would go."""
        answer = await self._replicas.options(multiplexed_model_id=model).load.remote(model)
        if isinstance(answer, Failed):
            raise answer.error

    async def _purge(self, model: str | None) -> tuple[int, int]:
        try:
            told = await self._replicas.broadcast("purge", model).results_async(return_exceptions=True)
        except DeploymentUnavailableError:
            return 0, 0  # nobody holds anything
        answers = [one for one in told if not isinstance(one, RayActorError)]  # nor does one that has died
        for answer in answers:
            if isinstance(answer, Failed):
                raise answer.error
            if isinstance(answer, BaseException):
                raise answer
        return sum(gone for gone, _ in answers), sum(left for _, left in answers)

    async def _keep_asking(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            await self._ask_all()

    async def _ask_all(self) -> None:
        """Of each replica its report; one that died meanwhile is left out.

        While one is too busy to answer, what all said last holds: Serve itself replaces one that hangs.
        """
        try:
            answers = await self._replicas.broadcast("report").results_async(
                timeout_s=_ANSWER_SECONDS, return_exceptions=True
            )
        except DeploymentUnavailableError:
            answers = []
        except (RayError, TimeoutError) as error:
            log.warning("not every worker told how it is: %r", error)
            return
        self._reports.replace([told for told in answers if not isinstance(told, BaseException)])
