"""How OpenAI words a failure, and the status by which its clients choose their exception."""

from typing import Any

import orjson

from api.dialect import Answer
from api.errors import message_of, status_of
from core.errors import ServingError


def refuse(error: ServingError) -> Answer:
    return Answer(orjson.dumps({"error": worded(error)}), openai_status(error))


def worded(error: ServingError) -> dict[str, Any]:
    """The object under ``error``, in bodies and in streams."""
    status = openai_status(error)
    kind = (
        "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    )
    return {"message": message_of(error), "type": kind, "param": error.param, "code": error.code}


def openai_status(error: ServingError) -> int:
    """400 for everything that is wrong with a field: ``BadRequestError`` to OpenAI's clients."""
    status = status_of(error)
    return 400 if status == 422 else status
