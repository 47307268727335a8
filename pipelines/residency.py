"""Which models stay in memory: counts and bytes only, no device and no clock."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from core.errors import CapacityError
from core.service import LoadedModel
from pipelines.options import LoadedPipeline, Precision, Tuning
from pipelines.precision import Role, role_of

GIB = 2**30
# Bytes of a weight. Quantized ones carry scales, and some layers beside them stay in 16 bits.
_PLAIN = {"bf16": 2.0, "fp16": 2.0, "fp32": 4.0}
_QUANTIZED = {"8bit": 1.1, "4bit": 0.65}


@dataclass(frozen=True, slots=True)
class Budget:
    """nbytes: of the device, for all models together. chosen: by GPU_MAX_GIB, or all there is."""

    nbytes: int
    chosen: bool

    def __str__(self) -> str:
        gib = f"{self.nbytes / GIB:.1f} GiB"
        return f"GPU_MAX_GIB allows {gib}" if self.chosen else f"this device has {gib}, GPU_MAX_GIB unset"


class Residency:
    """The loaded models, the least recently used first.

    most: how many are kept. ``budget`` is None until the device is known: nothing is too large till then.
    """

    def __init__(self, most: int) -> None:
        self.budget: Budget | None = None
        self._most = most
        self._loaded: OrderedDict[str, LoadedPipeline] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self._loaded

    def __getitem__(self, name: str) -> LoadedPipeline:
        """The model, which thereby becomes the one used last."""
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def peek(self, name: str) -> LoadedPipeline | None:
        return self._loaded.get(name)

    def add(self, name: str, pipeline: LoadedPipeline) -> None:
        self._loaded[name] = pipeline

    def drop(self, name: str) -> None:
        del self._loaded[name]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    @property
    def models(self) -> tuple[LoadedModel, ...]:
        return tuple(
            LoadedModel(name=name, bytes=held(pipeline), precision=pipeline.weights.precision)
            for name, pipeline in self._loaded.items()
        )

    @property
    def caches(self) -> dict[str, dict[str, int]]:
        """The models' own counters, which go on counting."""
        return {
            f"{name}.{cache}": counts
            for name, pipeline in self._loaded.items()
            for cache, counts in pipeline.caches.items()
        }

    def leaving_for(self, name: str, nbytes: int) -> list[str]:
        """Which models must go so that ``name`` with ``nbytes`` fits, the least recently used first.

        ``name`` itself never goes. Raises ``CapacityError`` ``not_ready`` when it would not fit alone.
        """
        self.check_alone(name, nbytes)
        others = {other: held(pipeline) for other, pipeline in self._loaded.items() if other != name}
        leaving: list[str] = []
        for other in others:
            kept = [size for known, size in others.items() if known not in leaving]
            fits = self.budget is None or sum(kept) + nbytes <= self.budget.nbytes
            if fits and len(kept) < self._most:
                break
            leaving.append(other)
        return leaving

    def check_alone(self, name: str, nbytes: int) -> None:
        if self.budget is not None and nbytes > self.budget.nbytes:
            remedy = "raise GPU_MAX_GIB" if self.budget.chosen else "use a larger device"
            raise CapacityError(
                "not_ready",
                f"{name} needs about {nbytes / GIB:.1f} GiB and {self.budget}; {remedy}, or set "
                "PRECISION_MODE=8bit or 4bit for a model that makes pictures",
                retryable=False,
            )


def held(pipeline: LoadedPipeline) -> int:
    """Bytes of weights and of what its caches hold now."""
    return pipeline.weights.nbytes + sum(counts.get("bytes", 0) for counts in pipeline.caches.values())


def expected_bytes(parts: Mapping[str, int], precision: Precision, tuning: Tuning, *, gpu: bool) -> int:
    """What a checkpoint is going to take on the device, before it is read.

    parts: weights by the part's name. Offloaded models are counted by what is on the device at once; the
    autoencoder always is. A text encoder that may stay on the host is counted as if it did.
    """
    sizes = {name: weights * _bytes_each(role_of(name), precision, gpu) for name, weights in parts.items()}
    if not gpu:  # the host is the device
        return round(sum(sizes.values()))
    staying = [size for name, size in sizes.items() if role_of(name) == "vae"]
    hosted = {"vae", "text"} if precision.cpu_offload else {"vae"}
    others = [size for name, size in sizes.items() if role_of(name) not in hosted]
    at_once = {"none": sum(others), "model": max(others, default=0), "sequential": 0}[tuning.offload]
    return round(sum(staying) + at_once)


def _bytes_each(role: Role, precision: Precision, gpu: bool) -> float:
    plain = _PLAIN.get(precision.mode, 2.0) if gpu else 4.0
    if precision.mode not in _QUANTIZED or role == "vae":
        return plain
    if precision.components == ("transformer" if role == "text" else "text"):
        return plain
    return _QUANTIZED[precision.mode]
