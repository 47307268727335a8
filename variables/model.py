"""Variables of models: which, from where, in what precision and how many."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode

from variables.combinations import refused_combinations

UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
MIB = 2**20
GIB = 2**30
HUB_FOLDERS = frozenset({"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"})
ROOT_FOLDER_HUB = "content/hf_cache/hub"
EightBit = Literal["auto", "bitsandbytes", "torchao-int8", "torchao-fp8", "fp8-layerwise"]


class ModelSettings(BaseSettings):
    # Which models, and from where
    default_model: str = Field(
        "qwen-image-edit-2509",
        validation_alias=AliasChoices("default_model", "model_id"),
        description="registry name, hub id or alias to serve (DEFAULT_MODEL, else MODEL_ID)",
    )
    allowed_models: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(),
        description="further models that a request may name, comma-separated; each is loaded when asked for",
    )
    model_dir: UserPath | None = Field(
        None, description="folder of the default model's checkpoint, instead of its hub id"
    )
    local_only: bool = Field(False, description="1 never asks a model hub for anything")
    hf_token: SecretStr | None = Field(None, description="token for gated checkpoints of the model hub")
    hf_endpoint: str = Field("https://huggingface.co", description="address of the model hub")
    hf_hub_cache: UserPath | None = Field(
        None,
        validation_alias=AliasChoices("hf_hub_cache", "huggingface_hub_cache"),
        description="folder of downloaded checkpoints (default: HF_HOME/hub)",
    )
    hf_root_folder: UserPath | None = Field(
        None,
        description="folder of an older vision server: checkpoints lie in its content/hf_cache/hub, unless "
        "HF_HUB_CACHE or HF_HOME says otherwise",
    )
    hf_home: UserPath = Field(
        Path("~/.cache/huggingface"), validate_default=True, description="home of the model hub's client"
    )
    cache_dir: UserPath = Field(
        Path("~/.cache/batchmux"),
        validate_default=True,
        description="where the built-in pocket checkpoints are built",
    )
    max_models_cache: int = Field(
        1, ge=1, description="models kept loaded; the least recently used leaves first"
    )
    reference_area: int | None = Field(
        None,
        ge=64 * 64,
        le=2048 * 2048,
        description="pixels at which input images enter the model; fewer is faster (default: the row's own)",
    )
    condition_area: int | None = Field(
        None,
        ge=64 * 64,
        le=1024 * 1024,
        description="pixels at which input images are shown to the text encoder (default: the model's own)",
    )
    default_steps: int | None = Field(
        None, ge=1, le=100, description="denoising steps when a request names none (default: the model's own)"
    )
    default_cfg_scale: float | None = Field(
        None,
        ge=0,
        le=20,
        validation_alias=AliasChoices("default_cfg_scale", "default_guidance"),
        description="guidance scale when a request names none (default: the model's own)",
    )
    condition_cache_mb: int = Field(
        256,
        ge=0,
        description="memory for prompt embeddings and reference latents that recur; 0 turns the cache off",
    )
    model_revision: str | None = Field(
        None, description="commit, tag or branch of the default model's repository, instead of its newest"
    )
    warm_up: Annotated[tuple[tuple[int, int], ...], NoDecode] = Field(
        (),
        description="sizes run once before the default model is ready: 1024x1024,768x1024; of pictures that "
        "are made, or that a vision model looks at",
    )

    # Few-step forms and LoRAs
    use_lightning_lora: bool = Field(
        True, description="1 fuses the few-step Lightning LoRA into each model whose row has one"
    )
    lightning_steps: int | None = Field(
        None,
        ge=1,
        le=100,
        description="which Lightning LoRA: 4 or 8 steps (default: the row's own); without a file it is off",
    )
    lora_dir: UserPath | None = Field(
        None, description="folder of LoRA files that are here already, asked before the model hub"
    )
    user_loras: Annotated[dict[str, str], NoDecode] = Field(
        {},
        description="LoRAs a request may name, comma-separated: id=FILE.safetensors or id=OWNER/NAME/FILE",
    )
    max_loras_cache: int = Field(
        4, ge=1, le=64, description="user LoRAs kept loaded; the least recently used leaves first"
    )

    # Precision, memory and speed
    precision_mode: Literal["bf16", "fp16", "fp32", "8bit", "4bit"] = Field(
        "bf16",
        description="number format of the weights on a GPU; a CPU computes unquantized ones in fp32; "
        "fp16 is refused by the Qwen family, which exceeds it",
    )
    quantize_components: Literal["all", "text", "transformer"] = Field(
        "all", description="what 8bit and 4bit are for: text encoder, transformer or both (never the VAE)"
    )
    eight_bit_backend: EightBit = Field(
        "auto",
        description="scheme of 8bit; auto picks by the card and TORCH_COMPILE and says so; bitsandbytes "
        "is for cards before Ampere",
    )
    bnb_compute: Literal["bf16", "fp16"] = Field(
        "bf16",
        description="number format of what 8bit and 4bit leave unquantized; fp16 where a card lacks bf16",
    )
    int8_cpu_offload: bool = Field(
        False,
        description="with 8bit: 1 keeps parts that do not fit onto the GPU on the host, the text encoder "
        "first, unquantized; their weights cross to the GPU layer by layer at every use",
    )
    gpu_max_gib: float | None = Field(
        None, gt=0, le=4096, description="most GPU memory for all loaded models together (default: all of it)"
    )
    offload: Literal["none", "model", "sequential"] = Field(
        "none",
        description="model: text encoder and transformer take turns on the GPU, seconds at every turn; "
        "sequential: one layer at a time, very slow; the VAE stays on the GPU",
    )
    torch_compile: bool = Field(
        False,
        description="1 compiles the transformer's repeated blocks; loading then takes minutes more",
    )
    vae_tiling: bool = Field(
        False,
        description="1 encodes and decodes large pictures in tiles: less memory, possibly faint seams",
    )
    vae_slicing: bool = Field(False, description="1 decodes a batch picture by picture: less memory")
    attention_backend: str | None = Field(
        None,
        description="attention of diffusers by name, such as _native_cudnn or xformers; it must take a mask "
        "(default: torch's own)",
    )

    @field_validator(
        "precision_mode", "quantize_components", "eight_bit_backend", "bnb_compute", "offload", mode="before"
    )
    @classmethod
    def _lower_model(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        wrong = [sentence for asked_for, sentence in refused_combinations(self) if asked_for]
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    @field_validator("allowed_models", mode="before")
    @classmethod
    def _split_models(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return frozenset(part.strip().lower() for part in value.split(",") if part.strip())

    @field_validator("user_loras", mode="before")
    @classmethod
    def _split_loras(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if not all(name.strip() and source.strip() for name, _, source in pairs):
            raise ValueError("each entry must be id=source, such as comic=/loras/comic.safetensors")
        names = [name.strip() for name, _, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError("an id stands for one LoRA, and one is given twice; rename it")
        return {name.strip(): source.strip() for name, _, source in pairs}

    @field_validator("warm_up", mode="before")
    @classmethod
    def _split_sizes(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        sizes = [part.lower().split("x") for part in value.split(",") if part.strip()]
        if not all(len(size) == 2 and all(side.strip().isdecimal() for side in size) for size in sizes):
            raise ValueError("each entry must be WIDTHxHEIGHT, such as 1024x1024")
        return tuple((int(width), int(height)) for width, height in sizes)

    # The settings in the words, and the units, of the parts that take them.

    @property
    def row(self) -> dict[str, Any]:
        """For ``pipelines.registry.catalog``."""
        return {
            "allowed": self.allowed_models,
            "reference_area": self.reference_area,
            "condition_area": self.condition_area,
            "steps": self.default_steps,
            "cfg": self.default_cfg_scale,
            "adapters": frozenset(self.user_loras),
            "max_adapters": self.max_loras_cache,
            **{name: self.loading[name] for name in ("lightning", "precision", "tuning")},
        }

    @property
    def loading(self) -> dict[str, Any]:
        """For ``pipelines.options.model_options``."""
        return {
            "model_dir": self.model_dir,
            "revision": self.model_revision,
            "local_only": self.local_only,
            "token": self.hf_token.get_secret_value() if self.hf_token else None,
            "cache_dir": self.cache_dir,
            "max_models": self.max_models_cache,
            "memory_bytes": None if self.gpu_max_gib is None else int(self.gpu_max_gib * GIB),
            "condition_cache_bytes": self.condition_cache_mb * MIB,
            "precision": {
                "mode": self.precision_mode,
                "components": self.quantize_components,
                "eight_bit": self.eight_bit_backend,
                "compute": self.bnb_compute,
                "cpu_offload": self.int8_cpu_offload,
            },
            "lightning": {
                "enabled": self.use_lightning_lora,
                "steps": self.lightning_steps,
                "folder": self.lora_dir,
            },
            "tuning": {
                "compile": self.torch_compile,
                "vae_tiling": self.vae_tiling,
                "vae_slicing": self.vae_slicing,
                "attention": self.attention_backend,
                "offload": self.offload,
            },
            "adapters": self.user_loras,
            "max_adapters": self.max_loras_cache,
            "warm_up": self.warm_up,
        }

    @property
    def hub_cache(self) -> Path:
        """Where downloaded checkpoints lie."""
        return self.hf_hub_cache or self.hf_home / "hub"
