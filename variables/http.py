"""Variables of the HTTP server: where it listens, who may use it, what it keeps and what it tells."""

import base64
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode

from variables.model import UserPath


class HttpSettings(BaseSettings):
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
    api_profile: Literal["worker", "firered", "gateway", "vision", "sdxl"] = Field(
        "worker", description="whose words /health and /metrics use, for clients of an older server"
    )

    # Keys and limits
    require_api_key: bool = Field(False, description="1 refuses requests without a key of API_KEY(S)")
    api_key: SecretStr | None = Field(None, description="the key that clients must send")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="several keys, comma-separated; wins over API_KEY"
    )
    requests_per_minute: int | None = Field(
        None, ge=1, description="requests of one key in a minute; further ones are refused with 429"
    )
    requests_at_once: int | None = Field(
        None,
        ge=1,
        description="unanswered requests of one key; further ones are refused with 429",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins whose pages may call this server, comma-separated; * is every page"
    )

    # What is kept
    data_dir: UserPath = Field(
        Path("data"), description="folder of jobs and of pictures that are answered as URLs"
    )
    base_url: str = Field("", description="address before /files/… in answers (default: the caller's)")
    keep_files_hours: float = Field(24, gt=0, description="hours for which a picture can be fetched")
    keep_files_gb: float = Field(10, gt=0, description="disk for pictures in GB; the oldest leave first")
    keep_jobs_hours: float = Field(24, gt=0, description="hours for which a finished job can be asked for")
    keep_jobs_gb: float = Field(4, gt=0, description="disk for jobs in GB; the oldest finished leave first")
    max_jobs: int = Field(1000, ge=1, description="most asynchronous jobs waiting; further ones get 429")
    webhook_secret: SecretStr | None = Field(
        None,
        description="signs webhooks as standardwebhooks.com says (HMAC-SHA256); text, or whsec_ and base64",
    )

    # Answers
    generation_timeout_seconds: float = Field(
        0, ge=0, le=86_400, description="deadline of /v1/generate; 0 is REQUEST_TIMEOUT_SECONDS"
    )
    images_default_response_format: Literal["b64_json", "url"] = Field(
        "b64_json", description="answers of /v1/images/… that name no response_format"
    )
    png_metadata: bool = Field(True, description="1 writes the settings of a picture into its PNG")

    # What is told
    metrics_enabled: bool = Field(True, description="0 leaves /metrics empty")
    log_prompts: bool = Field(False, description="1 puts prompts into the log")
    otel_exporter_otlp_endpoint: str | None = Field(
        None, description="OpenTelemetry collector that spans are sent to"
    )

    @field_validator("api_keys", "cors_origins", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("api_profile", "images_default_response_format", mode="before")
    @classmethod
    def _lower_http(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("webhook_secret")
    @classmethod
    def _whole_secret(cls, value: SecretStr | None) -> SecretStr | None:
        text = "" if value is None else value.get_secret_value()
        if text.startswith("whsec_"):
            try:
                base64.b64decode(text.removeprefix("whsec_"), validate=True)
            except ValueError:
                raise ValueError("what follows whsec_ must be base64") from None
        return value

    @field_validator("api_workers")
    @classmethod
    def _one_process(cls, value: int) -> int:
        if value != 1:
            raise ValueError(
                "one process owns one device, and two would load the model twice; leave it at 1 and start "
                "one process for each device, each on its own API_PORT, behind a load balancer"
            )
        return value
