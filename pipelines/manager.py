"""Which models are loaded: as many as count and memory allow, the least recently used leaves first.

Knows nothing of what a model is made of. Only the device thread may call ``acquire``; ``status`` may be
called from any thread, because everything it reads is one frozen object that is replaced, never changed.
"""

import gc
import importlib
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.catalog import Catalog
from core.errors import CapacityError, DeviceLost, OutOfDeviceMemory, ServingError
from core.service import Loading, ModelStatus
from core.spec import PipelineSpec
from core.stats import ModelCounts
from pipelines import warm_up
from pipelines.importing import undisturbed
from pipelines.load_progress import LoadProgress
from pipelines.memory import cuda_facts, cuda_is_available, device_memory, free_memory, memory_figures
from pipelines.options import Factory, Lightning, LoadedPipeline, ModelOptions, Precision, Report, Tuning
from pipelines.residency import Budget, Residency, expected_bytes, held

if TYPE_CHECKING:
    from pipelines.checkpoint import Found

log = logging.getLogger(__name__)

Find = Callable[[PipelineSpec, ModelOptions, Report], "Found"]
FIRST_RETRY, LONGEST_RETRY = 5.0, 120.0  # seconds


@dataclass(frozen=True, slots=True)
class _Failure:
    error: CapacityError
    attempts: int
    retry_at: float


def find_on_disk(spec: PipelineSpec, options: ModelOptions, report: Report) -> "Found":
    from pipelines.checkpoint import find

    return find(spec, options, report)


class ModelManager:
    """The ``acquire`` that the mux is handed.

    Nothing in use is evicted, because the mux calls ``acquire`` only while no rows are in memory.

    clock: monotonic seconds. has_gpu: asked when a row needs a GPU, and once for the status.
    device_bytes: what there is for weights where ``memory_bytes`` names no less.
    find: fetches a row's checkpoint and says where it is and what it holds.
    gpu_facts: asked by the status once a model was loaded onto a GPU.
    """

    def __init__(
        self,
        catalog: Catalog,
        options: ModelOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        has_gpu: Callable[[], bool] = cuda_is_available,
        device_bytes: Callable[[], int] = device_memory,
        find: Find = find_on_disk,
        gpu_facts: Callable[[], Mapping[str, str | float]] = cuda_facts,
    ) -> None:
        self._catalog = catalog
        self._options = options
        self._clock = clock
        self._has_gpu = has_gpu
        self._gpu_facts = gpu_facts
        self._device_bytes = device_bytes
        self._find = find
        self._loaded = Residency(options.max_models)
        self._measured: dict[str, int] = {}  # bytes of models that were loaded before
        self._failures: dict[str, _Failure] = {}
        self._status = ModelStatus()
        self._counts = ModelCounts()

    def acquire(self, name: str) -> LoadedPipeline:
        """The loaded pipeline of a name or alias; loads it, and evicts others, when it must.

        Raises ``RequestError`` ``model_not_found``, ``DeviceLost``, and ``CapacityError`` ``not_ready`` when
        it cannot be loaded. A failure is answered from memory until its back-off is over: 5 s, doubling to
        120 s.
        """
        spec = self._catalog.get(name)
        if spec.name not in self._loaded:
            self._refuse_while_backing_off(spec.name)
            try:
                self._load(spec)
            except DeviceLost:
                raise  # nothing will load in this process again
            except Exception as error:
                raise self._remember(spec.name, error) from error
        return self._loaded[spec.name]

    def evict(self, name: str | None = None) -> tuple[int, int]:
        """Throw one model out, or all of them: how many left and how many are still loaded.

        A model that is not loaded, or not known, throws nobody out. As ``acquire``, only for the device
        thread with no rows in memory. The next request for the model loads it again.
        """
        names = list(self._loaded.names)
        if name is not None:
            known = {alias.lower(): spec.name for spec in self._catalog for alias in spec.names}
            names = [loaded for loaded in names if loaded == known.get(name.strip().lower())]
        for loaded in names:
            self._let_leave(loaded)
        if names:
            self._publish_standing(f"{', '.join(names)} left memory; the next request loads it")
        return len(names), len(self._loaded.names)

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

    def counts(self) -> ModelCounts:
        """Since the start; the memory is of this moment."""
        return replace(self._counts, memory=memory_figures())

    def _load(self, spec: PipelineSpec) -> None:
        started = self._clock()
        progress = LoadProgress(spec.name, self._clock, self._publish_loading)
        with undisturbed():
            available = self._has_gpu()
            self._status = replace(self._status, gpu_available=available)
            if spec.needs_gpu and not available:
                raise _no_gpu(spec.name)
            load = _factory(spec)
        options = self._options if spec is self._catalog.default else self._options.for_others()
        rehearsal = warm_up.requests(spec, options)
        self._loaded.budget = self._budget()
        progress.files()
        found = self._find(spec, options, progress)
        whole = spec.vision is not None  # whose weights stay as they are
        expected = expected_bytes(
            {name: part.weights for name, part in found.parts.items()},
            Precision(mode="fp32") if whole else options.precision,
            Tuning() if whole else options.tuning,
            gpu=available,
        )
        self._make_room(spec.name, self._measured.get(spec.name, expected))
        progress.weights(sum(part.nbytes for part in found.parts.values()))

        pipeline = load(spec, replace(options, found=found), progress)
        warm_up.run(pipeline, rehearsal, progress)
        self._measured[spec.name] = held(pipeline)
        self._make_room(spec.name, held(pipeline))
        self._loaded.add(spec.name, pipeline)
        self._counts = replace(self._counts, loads=self._counts.loads + 1)
        self._failures.pop(spec.name, None)
        self._publish_standing(f"{spec.name} is loaded: {pipeline.precision}")
        weights, seconds = pipeline.weights, self._clock() - started
        log.info(
            "%s is loaded: %.2f GB of %s in %.1f s",
            *(spec.name, weights.nbytes / 1e9, weights.precision, seconds),
        )

    def _make_room(self, name: str, nbytes: int) -> None:
        """Raises ``CapacityError`` before anything leaves when ``name`` does not fit at all."""
        for leaving in self._loaded.leaving_for(name, nbytes):
            self._let_leave(leaving)
            self._publish("loading", f"{name} is loading: {leaving} makes room for it")
            log.info("%s makes room for %s", leaving, name)

    def _let_leave(self, name: str) -> None:
        self._loaded.drop(name)
        self._counts = replace(self._counts, evictions=self._counts.evictions + 1)
        # Imports freeze what is alive, a loaded model with it: in a cycle it would never be found again.
        gc.unfreeze()
        free_memory()
        gc.freeze()

    def _budget(self) -> Budget:
        there, chosen = self._device_bytes(), self._options.memory_bytes
        return Budget(there, False) if chosen is None or chosen > there else Budget(chosen, True)

    def _refuse_while_backing_off(self, name: str) -> None:
        failure = self._failures.get(name)
        if failure is not None and (wait := failure.retry_at - self._clock()) > 0:
            raise _again(failure.error, wait)

    def _remember(self, name: str, error: Exception) -> CapacityError:
        ours = isinstance(error, ServingError)  # a refusal with its sentence; its traceback tells nobody more
        log.error("loading %s failed: %s", name, error, exc_info=None if ours else error)
        _let_go(error)
        free_memory()
        self._counts = replace(self._counts, failures=self._counts.failures + 1)
        before = self._failures.get(name)
        attempts = 1 if before is None else before.attempts + 1
        wait = min(FIRST_RETRY * 2 ** (attempts - 1), LONGEST_RETRY)
        answer = _again(_as_answer(name, error), wait)
        # A copy: the one that is raised collects a traceback, and with it whatever was half loaded.
        self._failures[name] = _Failure(_again(answer, wait), attempts, self._clock() + wait)
        self._publish_standing(answer.message)
        return answer

    def _publish_standing(self, happened: str) -> None:
        """What the worker is once something has ended. The default that cannot be loaded is what fails it."""
        default = self._catalog.default.name
        failure = None if default in self._loaded else self._failures.get(default)
        if failure is None:
            self._publish("ready", happened)
        else:
            self._publish("failed", failure.error.message)

    def _publish_loading(self, detail: str, loading: Loading) -> None:
        self._publish("loading", detail, loading)

    def _publish(self, state: str, detail: str, loading: Loading | None = None) -> None:
        default = self._loaded.peek(self._catalog.default.name)
        self._status = ModelStatus(
            state=state,
            detail=detail,
            gpu_available=self._status.gpu_available,
            lightning_enabled=(self._status if default is None else default).lightning_enabled,
            caches=self._loaded.caches,
            loading=loading,
            models=self._loaded.models,
        )


def model_options(
    *, precision: Mapping[str, Any], lightning: Mapping[str, Any], tuning: Mapping[str, Any], **rest: Any
) -> ModelOptions:
    """Of plain values, as the settings hold them."""
    return ModelOptions(
        precision=Precision(**precision), lightning=Lightning(**lightning), tuning=Tuning(**tuning), **rest
    )


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
