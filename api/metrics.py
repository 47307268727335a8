"""``Metrics``: what is counted of requests and generations, and what is read elsewhere at every scrape.

Each application has a registry of its own, so several in a process do not add up.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from api.scrape import Snapshot
from core.errors import ServingError
from core.request import InferenceRequest
from core.result import InferenceResult, OnProgress
from core.service import HealthProbe, Submit
from core.stats import Stats

GENERATION_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
WAIT_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
_MINUTE = 60.0

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series of start times beside every other


class Metrics:
    """``image_…`` are the names of the SDXL service; whatever else is counted begins with ``batchmux_``."""

    def __init__(
        self, health: HealthProbe, stats: Callable[[], Stats], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.registry = CollectorRegistry()
        self._health = health
        self._clock = clock
        self._started = clock()
        self._arrivals: deque[float] = deque()  # of generations, in the last minute
        self._totals = dict.fromkeys(("completed", "failed", "generation_seconds", "queue_seconds"), 0.0)
        self._generations = Counter(
            "image_generations", "Pictures asked for, by outcome", ["status", "model"], registry=self.registry
        )
        self._seconds = Histogram(
            "image_generation_seconds",
            "Seconds from submission to the finished picture",
            ["model"],
            buckets=GENERATION_BUCKETS,
            registry=self.registry,
        )
        self._waits = Histogram(
            "batchmux_queue_seconds",
            "Seconds from submission until prepared",
            ["model"],
            buckets=WAIT_BUCKETS,
            registry=self.registry,
        )
        self._requests = Counter(
            "batchmux_requests",
            "HTTP requests, by the dialect that answered",
            ["dialect", "status"],
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "batchmux_request_seconds",
            "Seconds from a request's first byte to its answer's last",
            ["dialect"],
            buckets=WAIT_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(Snapshot(health, stats))
        ProcessCollector(registry=self.registry)

    def answered(self, dialect: str, status: int, seconds: float) -> None:
        """An HTTP request; 0 is the status of one that went unanswered."""
        self._requests.labels(dialect, str(status)).inc()
        self._request_seconds.labels(dialect).observe(seconds)

    def counted(self, submit: Submit) -> Submit:
        """The same port. What a caller cancels is neither completed nor failed."""

        async def counting(
            request: InferenceRequest, on_progress: OnProgress | None = None
        ) -> InferenceResult:
            began = self._clock()
            self._arrived(began)
            try:
                result = await submit(request, on_progress)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if not (isinstance(error, ServingError) and error.code == "cancelled"):
                    self._totals["failed"] += 1
                    self._generations.labels("failed", request.model).inc()
                raise
            seconds = self._clock() - began
            self._generations.labels("completed", request.model).inc()
            self._seconds.labels(request.model).observe(seconds)
            self._waits.labels(request.model).observe(result.queue_seconds)
            self._totals["completed"] += 1
            self._totals["generation_seconds"] += seconds
            self._totals["queue_seconds"] += result.queue_seconds
            return result

        return counting

    def summary(self) -> dict[str, Any]:
        """The text-to-image server's own ``/metrics``, as its page reads it."""
        now, totals, counts = self._clock(), self._totals, self._health().counts
        self._forget(now)
        completed = int(totals["completed"])
        return {
            "total_requests": counts.get("accepted", 0),
            "successful_generations": completed,
            "failed_generations": int(totals["failed"]),
            "current_queue_size": counts.get("queued", 0),
            "active_generations": counts.get("running", 0),
            "average_generation_time_ms": round(totals["generation_seconds"] * 1000 / max(completed, 1), 1),
            "average_queue_wait_ms": round(totals["queue_seconds"] * 1000 / max(completed, 1), 1),
            "uptime_seconds": round(now - self._started, 1),
            "requests_per_minute": len(self._arrivals),
        }

    def _arrived(self, now: float) -> None:
        self._arrivals.append(now)
        self._forget(now)

    def _forget(self, now: float) -> None:
        while self._arrivals and now - self._arrivals[0] >= _MINUTE:
            self._arrivals.popleft()
