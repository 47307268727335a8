"""What a job of RunPod's queue may say beside its ``input``, and how long a caller may wait.

Sources: docs.runpod.io/serverless/endpoints/send-requests and …/job-operations. It refuses to know what
``input`` means.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from api.json_fields import unknown
from core.errors import RequestError

_BESIDE: Final = ("input", "webhook", "policy", "s3Config", "id")
_POLICY: Final = ("executionTimeout", "lowPriority", "ttl")
_LONGEST_MS: Final = 7 * 24 * 3600 * 1000
_USUAL_TTL: Final = 24 * 3600.0
_USUAL_EXECUTION: Final = 600.0
_WAIT_MS: Final = (1000, 300_000)
_USUAL_WAIT_MS: Final = 90_000
_LONGEST_URL: Final = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Envelope:
    """ttl: seconds for which the job may wait and run; execution_timeout: seconds of one run."""

    input: Mapping[str, Any] = field(repr=False)
    webhook: str | None = field(default=None, repr=False)
    ttl: float = _USUAL_TTL
    execution_timeout: float = _USUAL_EXECUTION


def read(body: object) -> Envelope:
    """Raises ``RequestError``. ``lowPriority`` is allowed and changes nothing: it tells a platform not to
    start more workers. ``s3Config`` and ``input`` are looked into by who carries the job out."""
    if not isinstance(body, dict) or not isinstance(body.get("input"), dict):
        raise RequestError("invalid_parameter", 'the body must be {"input": {…}}', param="input")
    _refuse_others(body, _BESIDE)
    policy = {} if body.get("policy") is None else body["policy"]
    if not isinstance(policy, dict):
        raise RequestError("invalid_parameter", "policy must be an object", param="policy")
    _refuse_others(policy, _POLICY)
    if not isinstance(policy.get("lowPriority"), bool | None):
        raise RequestError("invalid_parameter", "policy.lowPriority must be true or false", param="policy")
    return Envelope(
        input=body["input"],
        webhook=webhook_of(body.get("webhook")),
        ttl=_seconds(policy, "ttl", _USUAL_TTL),
        execution_timeout=_seconds(policy, "executionTimeout", _USUAL_EXECUTION),
    )


def wait_seconds(query: Mapping[str, str]) -> float:
    """Raises ``RequestError``."""
    least, most = _WAIT_MS
    text = query.get("wait", str(_USUAL_WAIT_MS))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise RequestError(
            "invalid_parameter", f"wait must be a number of milliseconds from {least} to {most}", param="wait"
        )
    return int(text) / 1000


def _refuse_others(given: Mapping[str, object], known: Collection[str]) -> None:
    for name in sorted(given.keys() - set(known)):
        raise unknown(str(name), list(known))


def _seconds(policy: Mapping[str, object], name: str, usual: float) -> float:
    value = policy.get(name)
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LONGEST_MS:
        raise RequestError(
            "invalid_parameter",
            f"policy.{name} must be a number of milliseconds from 1 to {_LONGEST_MS}",
            param=f"policy.{name}",
        )
    return value / 1000


def webhook_of(value: object) -> str | None:
    """A URL or nothing. Whether its address may be called is seen when it is: names change theirs."""
    if value is None or value == "":
        return None
    try:
        fits = isinstance(value, str) and len(value) <= _LONGEST_URL and value.isprintable()
        parts = urlsplit(value) if fits and isinstance(value, str) else None
        if isinstance(value, str) and parts and parts.scheme in ("http", "https") and parts.hostname:
            return value
    except ValueError:
        pass
    raise RequestError(
        "invalid_parameter",
        f"webhook must be an http or https URL of at most {_LONGEST_URL} characters",
        param="webhook",
    )
