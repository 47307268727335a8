"""``Replica``: one device, one mux, behind a deployment handle. Images and errors cross as plain values."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing

import settings
from api.stream import Event, Failed, events
from batching.mux import BatchMux, BatchPolicy
from core.errors import ServingError
from core.request import InferenceRequest
from core.service import Health, port
from core.stats import Stats
from deploy.rayserve.report import Report
from pipelines.manager import ModelManager, model_options
from pipelines.registry import catalog

log = logging.getLogger("batchmux.rayserve")


class Replica:
    """Serve calls the methods; requests come to ``answer`` alone, ``max_ongoing_requests`` at once."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Serve awaits it
        """Returns when the default model is loaded, so that Serve sends nothing to a replica that cannot
        answer. Raises what the load raised: Serve shows it and tries again."""
        config = settings.load()
        logging.basicConfig(level=config.log_level, format="%(levelname)-7s| %(name)s | %(message)s")
        self._catalog = catalog(config.default_model, **config.row)
        self._models = ModelManager(self._catalog, model_options(**config.loading))
        # No two processes of a cluster share both.
        self._name = f"{os.uname().nodename}:{os.getpid()}"
        self._mux = BatchMux(self._models.acquire, BatchPolicy(**config.batching), on_fatal=_end)
        self._mux.start()
        self._submit = port(self._mux.submit)
        await asyncio.wrap_future(self._mux.warm(self._catalog.default.name))

    async def answer(self, request: InferenceRequest) -> AsyncGenerator[Event, None]:
        """Progress, then the result or the error of this row. Leaving it cancels the job."""
        async with aclosing(events(self._submit, request, self._mux.progress)) as stream:
            async for event in stream:
                yield event

    async def report(self) -> Report:
        return Report(
            name=self._name,
            health=self._health(),
            stats=Stats.of(self._mux.stats, self._models.counts),
        )

    async def load(self, model: str) -> Failed | None:
        """See ``api.dialect.Load``. A refusal is returned: raised, it would come in a wrapping of Ray's."""
        try:
            await asyncio.wrap_future(self._mux.warm(model))
        except ServingError as error:
            return Failed(error)
        return None

    async def purge(self, model: str | None) -> tuple[int, int] | Failed:
        """See ``api.dialect.Purge``; refused as ``load`` is."""
        try:
            return await asyncio.wrap_future(self._mux.between(self._models.evict, model))
        except ServingError as error:
            return Failed(error)

    def record_routing_stats(self) -> dict[str, list[str]]:
        """Serve asks every few seconds, for ``routing.HoldsTheWeights``. What is being loaded counts."""
        status = self._models.status()
        return {"models": [*status.loaded, *([status.loading.model] if status.loading else [])]}

    def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        fatal = self._mux.stats().fatal
        if fatal is not None:
            raise RuntimeError(fatal)

    def __del__(self) -> None:
        """Serve calls it once nothing is under way here any more, or never when that took too long."""
        if hasattr(self, "_mux"):
            self._mux.close()

    def _health(self) -> Health:
        stats = self._mux.stats()
        name = self._catalog.default.name
        return Health.of(name, self._models.status(), stats.counts, stats.draining, stats.fatal)


def _end(reason: str) -> None:
    """Without its device this process only refuses, fast, and so would draw the traffic of all: it ends.

    The ingress sends what it held to other replicas.
    """
    log.critical("this replica ends: %s", reason)
    os._exit(1)
