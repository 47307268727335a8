"""THE table from error code to HTTP status, and the headers that go with an error.

It refuses to know any dialect's body: a dialect puts ``code`` and ``message`` into its own shape.
"""

import math
from collections.abc import Mapping

from core.errors import CapacityError, ServingError

STATUS: Mapping[str, int] = {
    "invalid_json": 400,
    "unauthorized": 401,
    "model_not_found": 404,
    "job_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "conflict": 409,
    "expired": 410,
    "body_too_large": 413,
    "image_too_large": 413,
    "unsupported_media_type": 415,
    "invalid_parameter": 422,
    "unknown_field": 422,
    "invalid_image": 422,
    "url_not_allowed": 422,
    "image_fetch_failed": 422,
    "image_fetch_timeout": 422,
    "queue_full": 429,
    "rate_limited": 429,
    "cancelled": 499,  # nginx's "client closed request": nobody is left to read it
    "pipeline_error": 500,
    "output_too_large": 500,
    "upstream_error": 502,
    "not_ready": 503,
    "shutting_down": 503,
    "model_loading": 503,
    "gpu_out_of_memory": 503,
    "device_lost": 503,
    "no_upstream": 503,
    "deadline_exceeded": 504,
    "storage_full": 507,
}

# The OpenAI SDKs retry every 5xx unless this header says no; these would only fail again, dearly.
_NEVER_RETRY = frozenset({"deadline_exceeded", "gpu_out_of_memory"})

_LONGEST_RETRY_AFTER = 120
_USUAL_RETRY_AFTER = 5.0
_LONGEST_MESSAGE = 1000


def status_of(error: ServingError) -> int:
    return STATUS[error.code]


def message_of(error: ServingError) -> str:
    """The error's text, short enough for any error body to stay far below 4 KB."""
    text = error.message
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"


def headers_of(error: ServingError) -> dict[str, str]:
    """``Retry-After`` (1 to 120 whole seconds), or ``x-should-retry: false`` where a retry is no use."""
    lasting = isinstance(error, CapacityError) and not error.retryable
    if lasting or error.code in _NEVER_RETRY:
        return {"x-should-retry": "false"}
    if not error.retryable and error.retry_after is None:
        return {}
    seconds = _USUAL_RETRY_AFTER if error.retry_after is None else error.retry_after
    return {"Retry-After": str(min(max(1, math.ceil(seconds)), _LONGEST_RETRY_AFTER))}
