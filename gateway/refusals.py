"""How the gateway words what no server answered: one body that the clients of every dialect can read."""

from typing import Any, Final

import orjson

from api.errors import headers_of, message_of, status_of
from core.errors import ServingError
from gateway.asking import Reply, once

UNREACHED: Final = "Cannot connect to text-to-image server"
SILENT: Final = "Request to text-to-image server timed out"
UNAVAILABLE: Final = "Text-to-image server unavailable"
BROKEN: Final = "Error communicating with text-to-image server"
PREFIX: Final = "Text-to-image server error: "

_OPENAI: Final = ("/v1/images/", "/openai/", "/v1/models")


def refuse(error: ServingError, path: str, request_id: str, *, detail: str | None = None) -> Reply:
    """detail: the sentence of the text-to-image contract, where that was asked."""
    message, status = message_of(error), status_of(error)
    body: dict[str, Any]
    if path.startswith(_OPENAI):
        status = 400 if status == 422 else status
        kind = "server_error" if status >= 500 else "invalid_request_error"
        if status == 429:
            kind = "rate_limit_error"
        fault = {"message": message, "type": kind, "param": error.param, "code": error.code}
        body = {"error": fault}
    elif path == "/edit":
        body = {"error": error.code, "detail": message, "request_id": request_id}
    else:
        shown = detail or message
        body = {"detail": shown, "error": message, "code": error.code, "request_id": request_id}
    headers = {**headers_of(error), "Content-Type": "application/json", "X-Request-Id": request_id}
    if error.code == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    return reply(body, status, headers)


def reply(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    content = orjson.dumps(body)
    named = {"Content-Type": "application/json", **(headers or {}), "Content-Length": str(len(content))}
    return Reply(
        status=status,
        headers=[(name.lower().encode(), value.encode("latin-1")) for name, value in named.items()],
        chunks=once(content),
    )


def reworded(status: int, content: bytes) -> dict[str, Any]:
    """A server's own refusal as the text-to-image gateway passes it on."""
    try:
        body: Any = orjson.loads(content)
    except orjson.JSONDecodeError:
        body = None
    known = body if isinstance(body, dict) else {}
    said = known.get("detail") or known.get("error")
    if isinstance(said, dict):
        said = said.get("error") or said.get("message")
    sentence = said if isinstance(said, str) and said else f"status {status}"
    beside = {name: known[name] for name in ("code", "request_id") if isinstance(known.get(name), str)}
    return {"detail": f"{PREFIX}{sentence[:1000]}", **beside}
