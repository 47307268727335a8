"""What the operator chose about models, what a factory is given and what it gives back. Torch-free."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from core.pipeline import Pipeline
from core.request import Size
from core.spec import PipelineSpec

if TYPE_CHECKING:
    from pipelines.checkpoint import Found

Mode = Literal["bf16", "fp16", "fp32", "8bit", "4bit"]
EightBit = Literal["auto", "bitsandbytes", "torchao-int8", "torchao-fp8", "fp8-layerwise"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """How weights are held and multiplied on a GPU; a CPU computes unquantized weights in fp32.

    components: which parts are quantized by ``8bit`` and ``4bit``; the autoencoder never is.
    compute: number format of products and of everything unquantized beside 8-bit and 4-bit weights.
    cpu_offload: 8-bit parts that do not fit onto the GPU stay on the host.
    """

    mode: Mode = "bf16"
    components: Literal["all", "text", "transformer"] = "all"
    eight_bit: EightBit = "auto"
    compute: Literal["bf16", "fp16"] = "bf16"
    cpu_offload: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Lightning:
    """Few-step LoRAs, for rows that have one.

    steps: None is the row's own choice. folder: holds baked-in files, asked before the hub.
    """

    enabled: bool = False
    steps: int | None = None
    folder: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """Trades between speed and memory; each leaves the picture the same within rounding.

    attention: name of a diffusers attention backend; None is torch's own.
    offload: ``model`` keeps one part at a time on the GPU, ``sequential`` one layer at a time.
    """

    compile: bool = False
    vae_tiling: bool = False
    vae_slicing: bool = False
    attention: str | None = None
    offload: Literal["none", "model", "sequential"] = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """How models are loaded and kept.

    model_dir: a checkpoint's folder for the default model, in place of its source.
    revision: commit, tag or branch of the default model's repository, in place of its row's.
    token: for gated or private repositories of the model hub.
    cache_dir: where built-in checkpoints are written.
    found: the files that were found for this load already, so that the hub is asked only once.
    memory_bytes: of the device, for all loaded models together; None is all there is.
    condition_cache_bytes: per loaded model; 0 is off.
    adapters: LoRAs that a request may ask for: id to a file's path, or ``owner/name/file.safetensors``.
    max_adapters: kept loaded per model.
    warm_up: sizes run once before the default model counts as ready: of outputs, or of pictures looked at.
    """

    model_dir: Path | None = None
    revision: str | None = None
    local_only: bool = False
    token: str | None = field(default=None, repr=False)
    cache_dir: Path = Path("~/.cache/batchmux")
    found: "Found | None" = None
    max_models: int = 1
    memory_bytes: int | None = None
    condition_cache_bytes: int = 256 * 2**20
    precision: Precision = Precision()
    lightning: Lightning = Lightning()
    tuning: Tuning = Tuning()
    adapters: Mapping[str, str] = field(default_factory=dict)
    max_adapters: int = 4
    warm_up: tuple[Size, ...] = ()

    def for_others(self) -> "ModelOptions":
        """For models beside the default: without what was chosen for it alone."""
        return replace(self, model_dir=None, revision=None, warm_up=())


class Report(Protocol):
    """Told by a load how far it is; every call may raise to stop it."""

    def stage(self, name: str, number: int, total: int) -> None:
        """A part is begun: its name, its number from 1, of how many."""
        ...

    def bytes(self, done: int, total: int) -> None:
        """Bytes of weights fetched, or read, so far of those of this stage."""
        ...


@dataclass(frozen=True, slots=True)
class Weights:
    """What a loaded model's parameters and buffers take on its device, and in which formats, most first."""

    nbytes: int = 0
    precision: str = "none"


class LoadedPipeline(Pipeline[Any], Protocol):
    """What a factory gives back: a pipeline and what health reports of it."""

    lightning_enabled: bool
    precision: str  # how its weights are held and multiplied, and why: a sentence

    @property
    def weights(self) -> Weights:
        """As ``pipelines.device.weigh`` finds them; asked for when all is in place."""
        ...

    caches: Mapping[str, dict[str, int]]  # counters by cache; holds no tensor


Factory = Callable[[PipelineSpec, ModelOptions, Report], LoadedPipeline]


class Silent:
    """A report for those who do not care."""

    def stage(self, name: str, number: int, total: int) -> None: ...

    def bytes(self, done: int, total: int) -> None: ...
