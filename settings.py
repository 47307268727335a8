"""Every setting, read from the environment (and ``.env``) here and nowhere else.

A bad value stops start-up with a sentence that names the variable. An empty value means unset.
The README's table is generated from this class: the description is the documentation.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import (
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import NoDecode, SettingsConfigDict

from variables.gateway import GatewaySettings
from variables.gateway import check_server as check_server
from variables.http import HttpSettings
from variables.model import HUB_FOLDERS, ROOT_FOLDER_HUB, ModelSettings, UserPath
from variables.model import MIB as MIB
from variables.profiles import DEFAULTS
from variables.vision import VisionSettings


class Settings(HttpSettings, GatewaySettings, VisionSettings, ModelSettings):
    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    # Batching
    batch_size: int = Field(
        4,
        ge=1,
        le=64,
        validation_alias=AliasChoices("batch_size", "max_concurrent_jobs"),
        description="most requests in one forward (BATCH_SIZE, else MAX_CONCURRENT_JOBS)",
    )
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
        1024, ge=1, description="most memory of accepted requests in MiB; further ones are refused with 429"
    )
    request_timeout_seconds: float = Field(
        600,
        gt=0,
        le=86_400,
        validation_alias=AliasChoices("request_timeout_seconds", "timeout_seconds"),
        description="deadline of a request that names none (else TIMEOUT_SECONDS)",
    )
    drain_seconds: float = Field(
        60, ge=0, le=86_400, description="time that accepted work gets after SIGTERM"
    )

    # Images
    max_body_mb: int = Field(40, ge=1, description="largest request body in MiB")
    max_image_mb: int = Field(25, ge=1, description="largest encoded input image in MiB")
    max_image_pixels: int = Field(40_000_000, ge=64 * 64, description="largest decoded input image in pixels")
    output_format: Literal["png", "jpeg", "webp"] = Field(
        "png", description="format of results when a request names none"
    )
    codec_threads: int = Field(4, ge=1, le=32, description="threads that decode and encode images")
    fetch_allow_hosts: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(),
        description="host:port, comma-separated: may be named by image_url although private",
    )
    fetch_timeout_seconds: float = Field(
        10, gt=0, le=60, description="seconds in all for fetching one image_url"
    )

    # RunPod worker and local test
    runpod_log_level: Literal["DEBUG", "INFO", "WARN", "ERROR"] = Field(
        "INFO", description="least severe log line of the RunPod SDK; DEBUG prints every result in full"
    )
    output_dir: UserPath = Field(
        Path("out"), description="folder in which --test_input saves before and after pictures"
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

    @field_validator("*", mode="before")
    @classmethod
    def _strip(cls, value: object) -> object:
        return value.strip() if isinstance(value, str) else value

    @field_validator("batch_join", "batch_order", "output_format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("log_level", "runpod_log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("fetch_allow_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return frozenset(part.strip().lower() for part in value.split(",") if part.strip())

    @field_validator("fetch_allow_hosts")
    @classmethod
    def _host_and_port(cls, pairs: frozenset[str]) -> frozenset[str]:
        for pair in pairs:
            host, colon, port = pair.rpartition(":")
            if not (host and colon and port.isdecimal()):
                raise ValueError("each entry must be host:port, such as files.internal:8080")
        return pairs

    # The settings in the words, and the units, of the parts that take them.

    @property
    def pictures_at_once(self) -> int:
        """Of one vision request: each waits as a request, and of more than may wait some never could."""
        return min(self.max_vision_images, self.max_queue)

    @property
    def batching(self) -> dict[str, Any]:
        """For ``batching.policy.BatchPolicy``."""
        return {
            "max_batch_size": self.batch_size,
            "max_wait": self.batch_timeout_ms / 1000,
            "max_queue": self.max_queue,
            "max_queue_bytes": self.max_queue_mb * MIB,
            "max_batch_tokens": self.max_batch_tokens,
            "join": self.batch_join,
            "order": self.batch_order,
        }


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
        given = {k: v for k, v in dotenv_values(".env").items() if v} | dict(os.environ)
    except UnicodeDecodeError:
        raise BadSettings(".env: not UTF-8 text; save it again as UTF-8") from None
    for name, value in given.items():
        # The libraries that read these look at the process environment only, never at .env.
        if value and name.startswith(("HF_", "HUGGINGFACE_", "RUNPOD_")):
            os.environ.setdefault(name, value)
    if (folder := given.get("HF_ROOT_FOLDER")) and not (given.keys() & HUB_FOLDERS):
        os.environ["HF_HUB_CACHE"] = str(Path(folder.strip(), ROOT_FOLDER_HUB).expanduser())
    lines: list[str] = []
    try:
        settings = Settings()
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)
        lines += [
            (f"{_variable(str(e['loc'][0]), given)}: " if e["loc"] else "")  # none: several at once
            + e["msg"].removeprefix("Value error, ")
            for e in wrong
        ]
    if lines:
        raise BadSettings("\n".join(lines))
    profile = DEFAULTS.get(settings.api_profile, {})
    return settings.model_copy(
        update={name: value for name, value in profile.items() if name not in settings.model_fields_set}
    )


def _variable(location: str, given: dict[str, str]) -> str:
    """The name by which the operator set it: a field may answer to several."""
    field = Settings.model_fields.get(location)
    alias = field.validation_alias if field else None
    names = [str(c) for c in alias.choices] if isinstance(alias, AliasChoices) else [location]
    return next((n.upper() for n in names if given.get(n.upper())), location.upper())


def on_runpod() -> bool:
    """Whether RunPod started this process, also when ``load`` fails."""
    return bool(os.environ.get("RUNPOD_WEBHOOK_GET_JOB"))
