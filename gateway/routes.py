"""What a path is to the gateway: its own, work for any server, or about a job that one server holds."""

import re
from enum import Enum
from typing import Final


class Kind(Enum):
    WORK = "work"  # makes work: counts, waits for room, goes to the best server
    GENERATE = "generate"  # as WORK, in the words of the text-to-image contract
    JOB = "job"  # names a job or a file: the server that holds it answers
    EVERYWHERE = "everywhere"  # of all servers together
    ANY = "any"  # any server's answer is as good


PUBLIC: Final = frozenset({"/", "/health", "/metrics", "/live", "/ready", "/ping"})

_GENERATE: Final = frozenset({"/generate", "/generate-stream"})
_JOB: Final = re.compile(
    r"/v2/[^/]+/(?:status|status-sync|stream|cancel|retry)/(?P<queued>[^/]+)"
    r"|/jobs/(?!submit/)(?P<kept>[^/]+)"
    r"|/files/(?P<file>[^/]+)"
    r"|/jobs/status/(?P<status>[^/]+)"
)
_EVERYWHERE: Final = re.compile(
    r"/jobs|/v2/[^/]+/(?:purge-queue|health)|(?:/openai)?/v1/models|/v1/models/purge"
    r"|/lora/(?:load|unload|set-strength)|/models/(?:load|unload|unload-all|status)|/sdapi/v1/interrupt"
)
_MAKES_A_JOB: Final = re.compile(r"/v2/[^/]+/(?:run|runsync)|/jobs/submit/[^/]+")
_VISION: Final = re.compile(r"/(?:inference|jobs/submit)/(?P<slug>[^/]+)")


def kind_of(method: str, path: str) -> Kind:
    if path in _GENERATE:
        return Kind.GENERATE
    if _JOB.fullmatch(path):
        return Kind.JOB
    if _EVERYWHERE.fullmatch(path):
        return Kind.EVERYWHERE
    return Kind.WORK if method == "POST" else Kind.ANY


def job_in(path: str) -> str:
    """The job or file that a path names."""
    found = _JOB.fullmatch(path)
    return next((name for name in found.groups() if name), "") if found else ""


def makes_a_job(path: str) -> bool:
    """Whether the answer names a job, and an ``Idempotency-Key`` is kept with it."""
    return _MAKES_A_JOB.fullmatch(path) is not None


def model_of_path(path: str) -> str | None:
    """Vision routes name their model's family in the path."""
    found = _VISION.fullmatch(path)
    return found["slug"].replace("_", "-") if found else None
