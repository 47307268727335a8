"""The gateway's parts out of the settings, and what an operator should hear about them."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from api.keys import KeyRing
from gateway.balancer import Policy
from gateway.upstream import Connecting, Upstream
from settings import MIB, Settings

_RUNPOD_HOST = "api.runpod.ai"


@dataclass(frozen=True, kw_only=True, slots=True)
class GatewayOptions:
    """servers: addresses. key: for all of them; runpod_key: for those that are RunPod endpoints.

    kept: file of the servers that were added or drained at run time; None keeps nothing.
    """

    servers: tuple[str, ...]
    key: str = ""
    runpod_key: str = ""
    timeout: float = 300.0
    max_concurrent: int = 10
    max_waiting: int = 256
    max_body_bytes: int = 40 * MIB
    keys: KeyRing = field(default_factory=KeyRing)
    admin: KeyRing | None = None
    requests_per_minute: int | None = None
    requests_at_once: int | None = None
    cors_origins: tuple[str, ...] = ()
    probe_every: float = 2.0
    connect_seconds: float = 10.0
    continue_seconds: float = 1.0
    silent_seconds: float = 5.0
    kept: Path | None = None
    own_id: str = field(default_factory=lambda: secrets.token_hex(8))

    @classmethod
    def of(cls, settings: Settings) -> "GatewayOptions":
        admin = _text(settings.gateway_admin_key)
        return cls(
            servers=settings.servers,
            key=_text(settings.text2image_server_key),
            runpod_key=_text(settings.runpod_api_key),
            timeout=settings.request_timeout,
            max_concurrent=settings.max_concurrent_requests,
            max_waiting=settings.max_queue,
            max_body_bytes=settings.max_body_mb * MIB,
            keys=KeyRing.of(settings.require_api_key, _keys(settings)),
            admin=KeyRing.of(True, [admin]) if admin else None,
            requests_per_minute=settings.requests_per_minute,
            requests_at_once=settings.requests_at_once,
            cors_origins=settings.cors_origins,
            kept=settings.data_dir / "gateway.json",
        )

    @property
    def policy(self) -> Policy:
        return Policy(max_outstanding=self.max_concurrent)

    def upstream(self, url: str) -> Upstream:
        connecting = Connecting(
            own_id=self.own_id,
            timeout=self.timeout,
            connect_seconds=self.connect_seconds,
            continue_seconds=self.continue_seconds,
            silent_seconds=self.silent_seconds,
        )
        if is_runpod(url):
            from gateway.runpod import RunpodEndpoint

            shared = len(self.keys.digests) > 1
            return RunpodEndpoint(url, connecting, key=self.runpod_key or self.key, shared=shared)
        return Upstream(url, connecting, key=self.key)


def is_runpod(url: str) -> bool:
    """A queue endpoint of RunPod's, or of a worker that speaks its API: ``…/v2/{endpoint_id}``."""
    parts = urlsplit(url)
    return parts.hostname == _RUNPOD_HOST or parts.path.rstrip("/").startswith("/v2/")


def warnings(settings: Settings) -> Iterator[str]:
    most = settings.max_concurrent_requests
    yield (
        f"MAX_CONCURRENT_REQUESTS={most}: this process has at most {most} unanswered requests at each "
        f"server; with gunicorn -w N it is N times {most}"
    )
    keys = _keys(settings)
    if not settings.require_api_key and settings.api_host not in ("127.0.0.1", "::1", "localhost"):
        yield (
            "NO AUTHENTICATION: everybody who can reach this gateway can use its servers; "
            "set REQUIRE_API_KEY=1 and API_KEY, or API_HOST=127.0.0.1"
        )
    if settings.require_api_key and not keys:
        yield "REQUIRE_API_KEY=1 and no key is set: every request is answered 500; set API_KEY"
    if settings.require_api_key and len(keys) > 1:
        yield (
            "several API_KEYS: give the servers the same REQUIRE_API_KEY and API_KEYS, or they cannot tell "
            "one caller's jobs from another's"
        )


def refused(settings: Settings) -> Iterator[str]:
    """Combinations that would mix up callers; the start ends with them."""
    if settings.require_api_key and len(_keys(settings)) > 1 and settings.text2image_server_key is not None:
        yield (
            "TEXT2IMAGE_SERVER_KEY with several API_KEYS: all callers would be one to the servers and see "
            "each other's jobs; unset it and give the servers the same API_KEYS"
        )
    runpod = any(is_runpod(url) for url in settings.servers)
    if runpod and not (settings.runpod_api_key or settings.text2image_server_key):
        hosted = any(urlsplit(url).hostname == _RUNPOD_HOST for url in settings.servers)
        if hosted:
            yield "TEXT2IMAGE_SERVER_URL names a RunPod endpoint and no key is set; set RUNPOD_API_KEY"


def _keys(settings: Settings) -> list[str]:
    several = [key.get_secret_value() for key in settings.api_keys]
    one = _text(settings.api_key)
    return several or [one] * bool(one)


def _text(secret: object) -> str:
    value = getattr(secret, "get_secret_value", None)
    return str(value()) if value is not None else ""
