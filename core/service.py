"""The port between the edges and whatever computes: ``submit`` and a look at its health."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from core.request import InferenceRequest
from core.result import InferenceResult, OnProgress


class Submit(Protocol):
    """THE port. Raises ``ServingError``; cancelling the awaiting task cancels the job."""

    async def __call__(
        self, request: InferenceRequest, on_progress: OnProgress | None = None
    ) -> InferenceResult: ...


def port(submit: Callable[[InferenceRequest, OnProgress | None], Future[InferenceResult]]) -> Submit:
    """``submit`` of the threads' side, to be awaited: the one place where futures of the two kinds meet."""

    async def awaited(request: InferenceRequest, on_progress: OnProgress | None = None) -> InferenceResult:
        return await asyncio.wrap_future(submit(request, on_progress))

    return awaited


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """What a probe sees. ``state`` is loading | ready | draining | failed.

    ``detail`` is one sentence for a person: what is loading, or what went wrong and how to mend it.
    ``retry_after``: seconds after which a failure may be over; None where only a person can mend it.
    ``loaded``: names of the models in memory, the least recently used first.
    ``device``: name, compute_capability, allocated_mb, reserved_mb; empty where there is no GPU.
    """

    state: str
    model: str
    detail: str = ""
    retry_after: float | None = 5.0
    gpu_available: bool = False
    lightning_enabled: bool = False
    counts: dict[str, int] = field(default_factory=dict)  # the accounting identity, by state
    caches: dict[str, dict[str, int]] = field(default_factory=dict)
    loaded: tuple[str, ...] = ()
    device: Mapping[str, str | float] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return self.state == "ready"


class Admit(Protocol):
    """Refuse early: asked before a body is read or an image fetched, so that overload costs nothing.

    Raises the ``CapacityError`` that ``submit`` would raise now.
    """

    def __call__(self) -> None: ...


class HealthProbe(Protocol):
    def __call__(self) -> Health: ...
