"""Which models are loaded: at most so many, the least recently used leaves first, failures wait.

Knows nothing of what a model is made of. Only the device thread may call ``acquire``; ``status`` may be
called from any thread, because everything it reads is one frozen object that is replaced, never changed.
"""

import gc
import importlib
import logging
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from core.catalog import Catalog
from core.errors import CapacityError, DeviceLost, OutOfDeviceMemory, ServingError
from core.spec import PipelineSpec
from pipelines.importing import undisturbed
from pipelines.options import Factory, Lightning, LoadedPipeline, ModelOptions, Precision, Tuning

log = logging.getLogger(__name__)

FIRST_RETRY, LONGEST_RETRY = 5.0, 120.0  # seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelStatus:
    """``state`` is idle | loading | ready | failed; ``detail`` is a sentence for a person.

    gpu_available is None until something asked the device.
    retry_after: seconds after which a failure may be over; None when only a person can mend it.
    loaded: names, the least recently used first. device: see ``core.service.Health``.
    """

    state: str = "idle"
    detail: str = "no model is loaded yet"
    gpu_available: bool | None = None
    lightning_enabled: bool = False
    caches: dict[str, dict[str, int]] = field(default_factory=dict)
    retry_after: float | None = FIRST_RETRY
    loaded: tuple[str, ...] = ()
    device: Mapping[str, str | float] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """What health shows as it is here."""
        return {
            "gpu_available": bool(self.gpu_available),
            "lightning_enabled": self.lightning_enabled,
            "caches": self.caches,
            "retry_after": self.retry_after,
            "loaded": self.loaded,
            "device": self.device,
        }


@dataclass(frozen=True, slots=True)
class _Failure:
    error: CapacityError
    attempts: int
    retry_at: float


def cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


def cuda_facts() -> dict[str, str | float]:
    """Of the device that is in use, as ``Health.device`` holds them; empty when it is lost."""
    import torch

    try:
        name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    except RuntimeError:  # torch's CUDA errors; whoever asks for health must get an answer
        return {}
    return {
        "name": name,
        "compute_capability": f"{major}.{minor}",
        "allocated_mb": round(torch.cuda.memory_allocated() / 2**20, 1),
        "reserved_mb": round(torch.cuda.memory_reserved() / 2**20, 1),
    }


class ModelManager:
    """The ``acquire`` that the mux is handed.

    clock: monotonic seconds. has_gpu: asked when a row needs a GPU, and once for the status.
    gpu_facts: asked by the status once a model was loaded onto a GPU.
    """

    def __init__(
        self,
        catalog: Catalog,
        options: ModelOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        has_gpu: Callable[[], bool] = cuda_is_available,
        gpu_facts: Callable[[], Mapping[str, str | float]] = cuda_facts,
    ) -> None:
        self._catalog = catalog
        self._options = options
        self._clock = clock
        self._has_gpu = has_gpu
        self._gpu_facts = gpu_facts
        self._loaded: OrderedDict[str, LoadedPipeline] = OrderedDict()
        self._failures: dict[str, _Failure] = {}
        self._status = ModelStatus()

    def acquire(self, name: str) -> LoadedPipeline:
        """The loaded pipeline of a name or alias; loads it, and evicts another, when it must.

        Raises ``RequestError`` ``model_not_found``, ``DeviceLost``, and ``CapacityError`` ``not_ready`` when
        it cannot be loaded. A failure is answered from memory until its back-off is over: 5 s, doubling to
        120 s.
        """
        spec = self._catalog.get(name)
        pipeline = self._loaded.get(spec.name)
        if pipeline is None:
            self._refuse_while_backing_off(spec.name)
            try:
                pipeline = self._load(spec)
            except DeviceLost:
                raise  # nothing will load in this process again
            except Exception as error:
                raise self._remember(spec.name, error) from error
        self._loaded.move_to_end(spec.name)
        return pipeline

    def evict(self, name: str | None = None) -> tuple[int, int]:
        """Throw one model out, or all of them: how many left and how many are still loaded.

        A model that is not loaded, or not known, throws nobody out. As ``acquire``, only for the device
        thread with no rows in memory. The next request for the model loads it again.
        """
        names = list(self._loaded)
        if name is not None:
            known = {alias.lower(): spec.name for spec in self._catalog for alias in spec.names}
            names = [loaded for loaded in names if loaded == known.get(name.strip().lower())]
        for loaded in names:
            del self._loaded[loaded]
        if names:
            _free_memory()
            self._publish("ready", f"{', '.join(names)} left memory; the next request loads it")
        return len(names), len(self._loaded)

    def status(self) -> ModelStatus:
        """A snapshot; the cache counters in it are of this moment.

        A failure that may mend itself stands until its back-off is over. From then on the state is
        idle again, so that work is let in and the load tried once more.
        """
        status = self._status
        failure = self._failures.get(self._catalog.default.name)
        if status.state == "failed":
            if failure is not None and not failure.error.retryable:
                status = replace(status, retry_after=None)
            elif failure is None or self._clock() >= failure.retry_at:
                status = replace(status, state="idle")
            else:
                status = replace(status, retry_after=failure.retry_at - self._clock())
        return replace(
            status,
            caches={name: dict(counts) for name, counts in status.caches.items()},
            device=self._gpu_facts() if status.gpu_available and status.loaded else {},
        )

    def _load(self, spec: PipelineSpec) -> LoadedPipeline:
        self._publish("loading", f"{spec.name} is loading: importing libraries")
        with undisturbed():
            available = self._has_gpu()
            self._status = replace(self._status, gpu_available=available)
            if spec.needs_gpu and not available:
                raise _no_gpu(spec.name)
            load = _factory(spec)
        while len(self._loaded) >= self._options.max_models:
            evicted, _ = self._loaded.popitem(last=False)
            self._publish("loading", f"{spec.name} is loading: {evicted} makes room for it")
            _free_memory()

        pipeline = load(spec, self._options_for(spec), _Announcer(spec.name, self._publish))
        self._loaded[spec.name] = pipeline
        self._failures.pop(spec.name, None)
        self._publish("ready", f"{spec.name} is loaded: {pipeline.precision}")
        return pipeline

    def _options_for(self, spec: PipelineSpec) -> ModelOptions:
        if spec is self._catalog.default:
            return self._options
        return replace(self._options, model_dir=None)

    def _refuse_while_backing_off(self, name: str) -> None:
        failure = self._failures.get(name)
        if failure is not None and (wait := failure.retry_at - self._clock()) > 0:
            raise _again(failure.error, wait)

    def _remember(self, name: str, error: Exception) -> CapacityError:
        ours = isinstance(error, ServingError)  # a refusal with its sentence; its traceback tells nobody more
        log.error("loading %s failed: %s", name, error, exc_info=None if ours else error)
        _let_go(error)
        _free_memory()
        before = self._failures.get(name)
        attempts = 1 if before is None else before.attempts + 1
        wait = min(FIRST_RETRY * 2 ** (attempts - 1), LONGEST_RETRY)
        answer = _again(_as_answer(name, error), wait)
        # A copy: the one that is raised collects a traceback, and with it whatever was half loaded.
        self._failures[name] = _Failure(_again(answer, wait), attempts, self._clock() + wait)
        still_serving = self._catalog.default.name in self._loaded
        self._publish("ready" if still_serving else "failed", answer.message)
        return answer

    def _publish(self, state: str, detail: str) -> None:
        default = self._loaded.get(self._catalog.default.name)
        self._status = ModelStatus(
            state=state,
            detail=detail,
            gpu_available=self._status.gpu_available,
            lightning_enabled=default is not None and default.lightning_enabled,
            caches={
                f"{name}.{cache}": counts
                for name, pipeline in self._loaded.items()
                for cache, counts in pipeline.caches.items()
            },
            loaded=tuple(self._loaded),
        )


def model_options(
    *, precision: Mapping[str, Any], lightning: Mapping[str, Any], tuning: Mapping[str, Any], **rest: Any
) -> ModelOptions:
    """Of plain values, as the settings hold them."""
    return ModelOptions(
        precision=Precision(**precision), lightning=Lightning(**lightning), tuning=Tuning(**tuning), **rest
    )


class _Announcer:
    """The ``Report`` of one load, as sentences."""

    def __init__(self, name: str, publish: Callable[[str, str], None]) -> None:
        self._name, self._publish = name, publish

    def stage(self, name: str, number: int, total: int) -> None:
        self._publish("loading", f"{self._name} is loading: {name} ({number} of {total})")

    def bytes(self, done: int, total: int) -> None: ...


def _factory(spec: PipelineSpec) -> Factory:
    module, _, function = spec.factory.partition(":")
    factory: Factory = getattr(importlib.import_module(module), function)
    return factory


def _no_gpu(name: str) -> CapacityError:
    return CapacityError(
        "not_ready",
        f"{name} needs a CUDA device and there is none here; "
        "set DEFAULT_MODEL=pocket-edit to try this worker on a CPU",
        retryable=False,
    )


def _as_answer(name: str, error: Exception) -> CapacityError:
    if isinstance(error, OutOfDeviceMemory):
        # Raised as it is, it would tell the mux to try with fewer requests.
        return CapacityError("not_ready", f"{name} does not fit into this device's memory", retryable=False)
    if isinstance(error, CapacityError):
        return error
    if isinstance(error, ServingError):
        return CapacityError("not_ready", error.message)
    return CapacityError(
        "not_ready", f"{name} could not be loaded ({type(error).__name__}); the worker's log holds the reason"
    )


def _again(error: CapacityError, wait: float) -> CapacityError:
    """A fresh instance: one that is raised twice would collect tracebacks."""
    return CapacityError(
        error.code,
        error.message,
        param=error.param,
        retry_after=wait if error.retryable else None,
        retryable=error.retryable,
    )


def _let_go(error: BaseException | None) -> None:
    """Drop what the frames of a failed load still hold: the components that were read before it failed."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
