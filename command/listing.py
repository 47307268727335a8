"""A server's models, from whichever of its pages tells of them."""

from collections.abc import Iterator
from typing import Any

from command.failure import FAILED, Failure
from command.server import Server


def of_server(server: Server) -> Iterator[str]:
    """One line for each; * marks the default. Raises ``Failure``."""
    try:
        page = server.get("/v1/models")
        default = page.get("default_model")
        names = [row["id"] for row in page["data"]]
    except (Failure, AttributeError, KeyError, TypeError) as error:
        if isinstance(error, Failure) and error.code not in ("not_found", "404"):
            raise
        page = server.get("/")
        default, names = _of_root(page)
    for name in names:
        yield f"{'*' if name == default else ' '} {name}"


def _of_root(page: Any) -> tuple[Any, list[Any]]:
    try:
        return page["model"], list(page["models"])
    except (KeyError, TypeError):
        raise Failure("the server names no models; is --url the address of a batchmux?", FAILED) from None
