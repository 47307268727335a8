"""What ``/docs`` says of the flat dialect. Plain data in OpenAPI's words."""

from typing import Any, Final

from api.flat_fields import FlatAnswer, FlatInput

_INPUT: Final = FlatInput.model_json_schema()
_PROMPT: Final = {
    "type": "string",
    "minLength": 1,
    "description": _INPUT["properties"]["prompt"]["description"],
}

BODY: Final = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["input"],
                "additionalProperties": False,
                "properties": {
                    # Over HTTP nothing stands in for an absent prompt.
                    "input": _INPUT
                    | {"required": ["prompt"], "properties": _INPUT["properties"] | {"prompt": _PROMPT}},
                    "id": {"type": "string", "description": "ignored"},
                },
            },
            "example": {
                "input": {
                    "prompt": "Make the sky more dramatic",
                    "image_url": "https://example.com/image.jpg",
                    "num_inference_steps": 8,
                    "seed": 12345,
                }
            },
        }
    },
}

_FAULT: Final = {
    "type": "object",
    "required": ["detail", "error", "code", "request_id"],
    "properties": {
        "detail": {
            "description": "the message; on 500 an object with error and gpu_info",
            "anyOf": [{"type": "string"}, {"type": "object"}],
        },
        "error": {"type": "string", "description": "the message"},
        "code": {"type": "string", "description": "stable; meant for programs"},
        "request_id": {"type": "string"},
        "param": {"type": "string", "description": "the field at fault, where there is one"},
    },
}

ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "model": FlatAnswer,
        "description": "The picture; as events where text/event-stream is accepted",
        "content": {"text/event-stream": {}},
    },
    **{
        status: {"description": text, "content": {"application/json": {"schema": _FAULT}}}
        for status, text in (
            (400, "No picture where the model needs one, or no valid JSON"),
            (404, "No such model"),
            (408, "The body came too slowly"),
            (413, "The body or a picture is too large"),
            (415, "The body is compressed"),
            (422, "A field, a picture or a URL is not acceptable"),
            (429, "Too much waits already; Retry-After says when to come back"),
            (500, "The server failed"),
            (503, "Not ready, shutting down, or out of device memory"),
            (504, "The deadline passed"),
        )
    },
}
