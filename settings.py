"""Every setting, read from the environment (and ``.env``) here and nowhere else.

A bad value stops start-up with a sentence that names the variable. An empty value means unset.
The README's table is generated from this class: the description is the documentation.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    # Mode and address
    standalone_mode: bool = Field(False, description="1 serves HTTP here; 0 runs the RunPod worker loop")
    api_host: str = Field("0.0.0.0", description="address to listen on")  # noqa: S104 - the seed's default
    api_port: int = Field(
        8000,
        ge=1,
        le=65535,
        validation_alias=AliasChoices("api_port", "port", "app_port"),
        description="port to listen on (API_PORT, else PORT, else APP_PORT)",
    )
    api_workers: int = Field(1, ge=1, description="server processes; one process owns one device")

    # Model
    default_model: str = Field("qwen-image-edit-2509", description="registry name or alias to serve")
    model_dir: Path | None = Field(
        None, description="folder of the default model's checkpoint, instead of its hub id"
    )
    local_only: bool = Field(False, description="1 never asks a model hub for anything")
    cache_dir: Path = Field(
        Path("~/.cache/batchmux"), description="where the built-in pocket checkpoint is built"
    )
    precision_mode: Literal["bf16", "fp32"] = Field(
        "bf16", description="number format of the weights on a GPU; a CPU always computes in fp32"
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
        None, ge=0, le=20, description="guidance scale when a request names none (default: the model's own)"
    )
    condition_cache_mb: int = Field(
        256,
        ge=0,
        description="memory for prompt embeddings and reference latents that recur; 0 turns the cache off",
    )

    # Batching
    batch_size: int = Field(4, ge=1, le=64, description="most requests in one forward")
    batch_timeout_ms: float = Field(
        40, ge=0, le=10_000, description="BATCH_JOIN=batch: how long the first request waits for others"
    )
    batch_join: Literal["step", "batch"] = Field(
        "step",
        description="step: requests join a running batch; batch: equal size, steps and cfg start together",
    )
    batch_order: Literal["remaining", "fifo"] = Field(
        "remaining",
        description="remaining: least remaining work first, with an age guard; fifo: in order of arrival",
    )
    max_batch_tokens: int = Field(
        65_536, ge=1, description="most transformer tokens in one forward; one row always fits"
    )
    max_queue: int = Field(256, ge=1, description="most requests waiting; further ones are refused with 429")
    max_queue_mb: int = Field(
        1024, ge=1, description="most memory of waiting requests in MiB; further ones are refused with 429"
    )
    request_timeout_seconds: float = Field(600, gt=0, description="deadline of a request that names none")
    drain_seconds: float = Field(60, ge=0, description="time that accepted work gets after SIGTERM")

    # Images
    max_body_mb: int = Field(40, ge=1, description="largest request body in MiB")
    max_image_mb: int = Field(25, ge=1, description="largest encoded input image in MiB")
    max_image_pixels: int = Field(40_000_000, ge=64 * 64, description="largest decoded input image in pixels")
    output_format: Literal["png", "jpeg", "webp"] = Field(
        "png", description="format of results when a request names none"
    )
    codec_threads: int = Field(
        4,
        ge=1,
        validation_alias=AliasChoices("codec_threads", "api_executor_workers"),
        description="threads that decode and encode images (API_EXECUTOR_WORKERS is understood too)",
    )
    fetch_allow_hosts: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(),
        description="host:port, comma-separated: may be named by image_url although private",
    )
    fetch_timeout_seconds: float = Field(
        10, gt=0, le=60, description="seconds in all for fetching one image_url"
    )

    # RunPod worker and local test
    output_dir: Path | None = Field(
        None, description="folder in which --test_input saves before and after pictures (default: out)"
    )
    max_output_mb: float = Field(
        18,
        gt=0,
        le=19,
        description="largest job output in MB; more becomes JPEG or WebP, a bucket URL, or an error",
    )
    bucket_endpoint_url: str | None = Field(
        None, description="S3-compatible endpoint; results too large for a job answer are put there"
    )
    bucket_access_key_id: SecretStr | None = Field(None, description="key id for the bucket")
    bucket_secret_access_key: SecretStr | None = Field(None, description="secret for the bucket")
    bucket_name: str | None = Field(
        None, description="bucket name (default: from the endpoint URL, as RunPod does)"
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="least severe log line to print"
    )

    @field_validator("fetch_allow_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        if isinstance(value, str):
            return frozenset(part.strip().lower() for part in value.split(",") if part.strip())
        return value


class BadSettings(Exception):
    """One line per wrong variable, for a person to read at start-up."""


def describe() -> list[tuple[str, str, str]]:
    """(variable, default, description) of every setting; README and ``.env.example`` show these."""
    rows = []
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        variable = str(alias.choices[0]) if isinstance(alias, AliasChoices) else name
        default = int(field.default) if isinstance(field.default, bool) else field.default
        shown = str(default) if default or default == 0 else ""
        rows.append((variable.upper(), shown, field.description or ""))
    return rows


def load() -> Settings:
    """Read the environment. Raises ``BadSettings``."""
    try:
        return Settings()
    except ValidationError as error:
        lines = [
            f"{str(e['loc'][0]).upper()}: {e['msg']}"
            for e in error.errors(include_url=False, include_input=False)
        ]
        raise BadSettings("\n".join(lines)) from None
