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
class Loading:
    """How far a load is. ``bytes_total`` is 0, and what follows from it None, while nothing is counted.

    stage: what is being done: a part's name, or ``files`` while they are fetched.
    percent: 0 to 100. seconds_left: at the pace so far.
    """

    model: str
    stage: str
    bytes_done: int = 0
    bytes_total: int = 0
    percent: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model in memory. bytes: of weights and caches on its device. precision: formats of its weights."""

    name: str
    bytes: int
    precision: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelStatus:
    """``state`` is idle | loading | ready | failed; ``detail`` is a sentence for a person.

    gpu_available is None until something asked the device.
    retry_after: seconds after which a failure may be over; None when only a person can mend it.
    loading: None unless something is. models: those in memory, the least recently used first.
    device: see ``Health``.
    """

    state: str = "idle"
    detail: str = "no model is loaded yet"
    gpu_available: bool | None = None
    lightning_enabled: bool = False
    caches: dict[str, dict[str, int]] = field(default_factory=dict)
    retry_after: float | None = 5.0
    loading: Loading | None = None
    models: tuple[LoadedModel, ...] = ()
    device: Mapping[str, str | float] = field(default_factory=dict)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the models in memory, the least recently used first."""
        return tuple(model.name for model in self.models)


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """What a probe sees. ``state`` is loading | ready | draining | failed.

    ``detail`` is one sentence for a person: what is loading, or what went wrong and how to mend it.
    ``retry_after``: seconds after which a failure may be over; None where only a person can mend it.
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
    loading: Loading | None = None
    models: tuple[LoadedModel, ...] = ()
    device: Mapping[str, str | float] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the models in memory, the least recently used first."""
        return tuple(model.name for model in self.models)

    @classmethod
    def of(
        cls, model: str, loaded: ModelStatus, counts: dict[str, int], draining: bool, fatal: str | None
    ) -> "Health":
        """Of a process that serves ``model``, from what its models and its queue say of themselves.

        A model that is not loaded yet will be with the first request, so the process counts as loading.
        fatal: why the device cannot be used any more.
        """
        state = "loading" if loaded.state == "idle" else loaded.state
        return cls(
            state="failed" if fatal else "draining" if draining else state,
            model=model,
            detail=fatal or loaded.detail,
            gpu_available=bool(loaded.gpu_available),
            lightning_enabled=loaded.lightning_enabled,
            counts=counts,
            caches=loaded.caches,
            retry_after=loaded.retry_after,
            loading=loaded.loading,
            models=loaded.models,
            device=loaded.device,
        )


class Admit(Protocol):
    """Refuse early: asked before a body is read or an image fetched, so that overload costs nothing.

    Raises the ``CapacityError`` that ``submit`` would raise now.
    """

    def __call__(self) -> None: ...


class HealthProbe(Protocol):
    def __call__(self) -> Health: ...
