"""Which models are loaded: at most so many, the least recently used leaves first, failures wait.

Knows nothing of what a model is made of. Only the device thread may call ``acquire``; ``status`` may be
called from any thread, because everything it reads is one frozen object that is replaced, never changed.
"""

import gc
import importlib
import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from core.errors import CapacityError, DeviceLost, OutOfDeviceMemory, ServingError
from core.pipeline import Catalog, Pipeline, PipelineSpec

log = logging.getLogger(__name__)

Report = Callable[[str, int, int], None]  # component, its number from 1, of how many
FIRST_RETRY, LONGEST_RETRY = 5.0, 120.0  # seconds


class LoadedPipeline(Pipeline[Any], Protocol):
    """What a factory gives back: a pipeline and what health reports of it."""

    lightning_enabled: bool
    caches: Mapping[str, dict[str, int]]  # counters by cache; holds no tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """How models are loaded and kept.

    model_dir: a checkpoint's folder for the default model, in place of its source.
    token: for gated or private repositories of the model hub.
    cache_dir: where built-in checkpoints are written.
    precision: of the weights on a GPU; a CPU computes in fp32.
    condition_cache_bytes: per loaded model; 0 is off.
    """

    model_dir: Path | None = None
    local_only: bool = False
    token: str | None = field(default=None, repr=False)
    cache_dir: Path = Path("~/.cache/batchmux")
    precision: Literal["bf16", "fp32"] = "bf16"
    max_models: int = 1
    condition_cache_bytes: int = 256 * 2**20


Factory = Callable[[PipelineSpec, ModelOptions, Report], LoadedPipeline]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelStatus:
    """``state`` is idle | loading | ready | failed; ``detail`` is a sentence for a person.

    gpu_available is None until something asked the device.
    """

    state: str = "idle"
    detail: str = "no model is loaded yet"
    gpu_available: bool | None = None
    lightning_enabled: bool = False
    caches: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Failure:
    error: CapacityError
    attempts: int
    retry_at: float


def cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


class ModelManager:
    """The ``acquire`` that the mux is handed.

    clock: monotonic seconds. has_gpu: asked when a row needs a GPU, and once for the status.
    """

    def __init__(
        self,
        catalog: Catalog,
        options: ModelOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        has_gpu: Callable[[], bool] = cuda_is_available,
    ) -> None:
        self._catalog = catalog
        self._options = options
        self._clock = clock
        self._has_gpu = has_gpu
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

    def status(self) -> ModelStatus:
        """A snapshot; the cache counters in it are of this moment."""
        status = self._status
        return replace(status, caches={name: dict(counts) for name, counts in status.caches.items()})

    def _load(self, spec: PipelineSpec) -> LoadedPipeline:
        self._publish("loading", f"{spec.name} is loading: importing libraries")
        available = self._has_gpu()
        self._status = replace(self._status, gpu_available=available)
        if spec.needs_gpu and not available:
            raise _no_gpu(spec.name)
        while len(self._loaded) >= self._options.max_models:
            evicted, _ = self._loaded.popitem(last=False)
            self._publish("loading", f"{spec.name} is loading: {evicted} makes room for it")
            _free_memory()

        def report(component: str, number: int, total: int) -> None:
            self._publish("loading", f"{spec.name} is loading: {component} ({number} of {total})")

        pipeline = _factory(spec)(spec, self._options_for(spec), report)
        self._loaded[spec.name] = pipeline
        self._failures.pop(spec.name, None)
        self._publish("ready", f"{spec.name} is loaded")
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
        log.error("loading %s failed", name, exc_info=error)
        _free_memory()
        before = self._failures.get(name)
        attempts = 1 if before is None else before.attempts + 1
        wait = min(FIRST_RETRY * 2 ** (attempts - 1), LONGEST_RETRY)
        answer = _again(_as_answer(name, error), wait)
        self._failures[name] = _Failure(answer, attempts, self._clock() + wait)
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
        )


def _factory(spec: PipelineSpec) -> Factory:
    module, _, function = spec.factory.partition(":")
    factory: Factory = getattr(importlib.import_module(module), function)
    return factory


def _no_gpu(name: str) -> CapacityError:
    error = CapacityError(
        "not_ready",
        f"{name} needs a CUDA device and there is none here; "
        "set DEFAULT_MODEL=pocket-edit to try this worker on a CPU",
    )
    error.retryable = False
    return error


def _as_answer(name: str, error: Exception) -> CapacityError:
    if isinstance(error, OutOfDeviceMemory):
        # Raised as it is, it would tell the mux to try with fewer requests.
        return CapacityError("not_ready", f"{name} does not fit into this device's memory")
    if isinstance(error, CapacityError):
        return error
    if isinstance(error, ServingError):
        return CapacityError("not_ready", error.message)
    return CapacityError(
        "not_ready", f"{name} could not be loaded ({type(error).__name__}); the worker's log holds the reason"
    )


def _again(error: CapacityError, wait: float) -> CapacityError:
    """A fresh instance: one that is raised twice would collect tracebacks."""
    answer = CapacityError(error.code, error.message, param=error.param, retry_after=wait)
    answer.retryable = error.retryable
    return answer


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
