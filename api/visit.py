"""``Visit``: what is noted of one HTTP request on its way; log line, metrics and span are made of it."""

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from starlette.requests import Request
from starlette.types import Scope

from api.dialect import Arrival, Endpoint
from api.exchange import request_id
from core.request import InferenceRequest
from core.result import InferenceResult

_PLACE: Final = "batchmux.visit"


@dataclass(slots=True, eq=False)
class Visit:
    """endpoint: None where no path of ours was asked for. code: of the error, "" while there is none.

    id: 16 hex digits. shown_id: the caller's own where it is harmless, else ``id``.
    seconds: time by stage of the way, for ``Server-Timing``. figures: what its answer was made with.
    prompt: kept only while it is to be logged. Nothing here holds a picture.
    """

    id: str
    shown_id: str
    method: str
    path: str
    endpoint: Endpoint | None = None
    owner: str = ""
    started: float = field(default_factory=time.monotonic)
    status: int = 0
    code: str = ""
    sent: int = 0
    keep_prompt: bool = False
    prompt: str | None = None
    figures: dict[str, str | int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def public(self) -> bool:
        """Only what is declared so: paths nobody declared are not."""
        return self.endpoint is not None and self.endpoint.public

    @property
    def makes_work(self) -> bool:
        return self.method == "POST" and self.endpoint is not None and not self.endpoint.control

    @property
    def dialect(self) -> str:
        return "none" if self.endpoint is None else self.endpoint.dialect

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def asks(self, requests: Sequence[InferenceRequest]) -> None:
        self.figures |= {"model": requests[0].model, "pictures": len(requests)}
        if self.keep_prompt:
            self.prompt = requests[0].prompt

    def got(self, results: Sequence[InferenceResult]) -> None:
        """Several pictures of one request share their batches, so the slowest stands for all."""
        slowest = max(results, key=lambda result: result.queue_seconds + result.inference_seconds)
        self.figures |= {"steps": slowest.steps, "batch": slowest.batch_size}
        self.seconds |= {"queue": slowest.queue_seconds, "inference": slowest.inference_seconds}

    @property
    def server_timing(self) -> str:
        """https://www.w3.org/TR/server-timing/: milliseconds, which browsers show beside the request."""
        stages = {**self.seconds, "total": self.elapsed}
        return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in stages.items())


def open_visit(scope: Scope, endpoint: Endpoint | None, *, keep_prompt: bool = False) -> Visit:
    """Begin one, and leave it in the scope for whoever comes after."""
    own = secrets.token_hex(8)
    sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    visit = Visit(
        id=own,
        shown_id=request_id(sent.decode("latin-1"), own),
        method=scope["method"],
        path=scope["path"],
        endpoint=endpoint,
        keep_prompt=keep_prompt,
    )
    scope[_PLACE] = visit
    return visit


def visit_of(scope: Scope) -> Visit:
    found = scope.get(_PLACE)
    return found if isinstance(found, Visit) else open_visit(scope, None)


def arrival_of(request: Request) -> Arrival:
    visit = visit_of(request.scope)
    return Arrival(
        id=visit.id,
        shown_id=visit.shown_id,
        path=visit.path,
        started=visit.started,
        headers=request.headers,
        path_params=request.path_params,
        query=request.query_params,
        owner=visit.owner,
        origin=str(request.base_url),
    )
