"""What ``/docs`` says of OpenAI's image routes. Plain data in OpenAPI's words."""

from typing import Any, Final

from api.openai_fields import Edit, Generation

_GENERATION = Generation.model_json_schema()
_EDIT = Edit.model_json_schema()

GENERATION: Final = {
    "required": True,
    "content": {
        "application/json": {
            "schema": _GENERATION,
            "example": {"prompt": "a lighthouse at dusk", "size": "1024x1024", "quality": "medium"},
        }
    },
}
EDIT: Final = {
    "required": True,
    "content": {"multipart/form-data": {"schema": _EDIT}, "application/json": {"schema": _EDIT}},
}

_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "the field at fault"},
                "code": {"type": "string", "description": "stable; meant for programs"},
            },
        }
    },
}
_PICTURES: Final = {
    "type": "object",
    "required": ["created", "data"],
    "properties": {
        "created": {"type": "integer"},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "b64_json": {"type": "string"},
                    "url": {"type": "string"},
                    "seed": {"type": "integer"},
                },
            },
        },
        "usage": {"type": "object"},
    },
}

ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The pictures; with stream true, events",
        "content": {"application/json": {"schema": _PICTURES}, "text/event-stream": {}},
    },
    **{
        status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
        for status, text in (
            (400, "The body, a field, a picture or a URL is not acceptable"),
            (404, "No such model"),
            (408, "The body came too slowly"),
            (413, "The body or a picture is too large"),
            (415, "The body is compressed, or no form"),
            (429, "Too much waits already; Retry-After says when to come back"),
            (500, "The server failed"),
            (503, "Not ready, shutting down, or out of device memory"),
            (504, "The deadline passed"),
            (507, "No room for a picture that was asked for as a URL"),
        )
    },
}
