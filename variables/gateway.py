"""Variables of the gateway: which servers it stands before, and how much it asks of them."""

from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings


class GatewaySettings(BaseSettings):
    text2image_server_url: str = Field(
        "http://localhost:8001",
        description="gateway: its servers, comma-separated; https://api.runpod.ai/v2/… is a RunPod endpoint",
    )
    text2image_server_key: SecretStr | None = Field(
        None, description="gateway: key sent to its servers in place of the callers' own"
    )
    runpod_api_key: SecretStr | None = Field(
        None, description="gateway: key of its RunPod endpoints; callers' keys are never sent there"
    )
    request_timeout: float = Field(
        300, gt=0, le=86_400, description="gateway: seconds for a server to answer"
    )
    max_concurrent_requests: int = Field(
        10, ge=1, description="gateway: unanswered requests at each server, from each of its processes"
    )
    gateway_admin_key: SecretStr | None = Field(
        None, description="gateway: key of /gateway/upstreams, where servers are added and drained"
    )

    @field_validator("text2image_server_url")
    @classmethod
    def _addresses(cls, value: str) -> str:
        servers = _split(value)
        for server in servers:
            check_server(server)
        if not servers or len(set(servers)) != len(servers):
            raise ValueError("name at least one server, and each once")
        return value

    @property
    def servers(self) -> tuple[str, ...]:
        """The addresses in ``TEXT2IMAGE_SERVER_URL``."""
        return _split(self.text2image_server_url)


def _split(value: str) -> tuple[str, ...]:
    return tuple(part.strip().rstrip("/") for part in value.split(",") if part.strip())


def check_server(address: str) -> None:
    """Raises ``ValueError`` for what is no server's address."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("each server must be http://host:port or https://host")
    if "@" in parts.netloc or parts.query or parts.fragment or "\\" in address or not _plain(address):
        raise ValueError("a server's address holds no key, query or blank; keys have variables of their own")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("a server's port is a number from 1 to 65535")


def _plain(address: str) -> bool:
    return all("!" <= letter <= "~" for letter in address)
