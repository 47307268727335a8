"""Who may use the HTTP server, out of the settings, and what an operator should hear about it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from settings import Settings

if TYPE_CHECKING:
    from api.gate import AccessOptions


def options(settings: Settings) -> "AccessOptions":
    """``API_KEYS`` wins over ``API_KEY``."""
    from api.gate import AccessOptions
    from api.keys import KeyRing

    return AccessOptions(
        keys=KeyRing.of(settings.require_api_key, _keys(settings)),
        requests_per_minute=settings.requests_per_minute,
        requests_at_once=settings.requests_at_once,
        cors_origins=settings.cors_origins,
    )


def warnings(settings: Settings) -> Iterator[str]:
    """One sentence for each thing that leaves the server open, or shut to everybody."""
    keys = _keys(settings)
    if settings.require_api_key:
        if not keys:
            yield "REQUIRE_API_KEY=1 and no key is set: every request is answered 500; set API_KEY"
        return
    if settings.api_host not in ("127.0.0.1", "::1", "localhost"):
        where = f"{settings.api_host}:{settings.api_port}"
        yield (
            f"NO AUTHENTICATION: everybody who can reach {where} can use this server; "
            "set REQUIRE_API_KEY=1 and API_KEY, or API_HOST=127.0.0.1"
        )
    if keys:
        yield "API_KEY is set and REQUIRE_API_KEY is not 1, so nobody is asked for a key"


def _keys(settings: Settings) -> list[str]:
    several = [key.get_secret_value() for key in settings.api_keys]
    one = settings.api_key.get_secret_value() if settings.api_key else ""
    return several or [one] * bool(one)
