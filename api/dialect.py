"""What a dialect is to the server: it reads a body, makes requests of it, and words answer and refusal."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from api.images import ImageFormat
from api.intake import ImageIntake
from api.stream import Event
from core.catalog import Catalog
from core.errors import ServingError
from core.request import InferenceRequest
from core.result import InferenceResult, Progress
from core.service import Admit, HealthProbe, Submit


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiOptions:
    """body_seconds: for a body to arrive in full; body_stall_seconds: without a byte of it.

    timeout: deadline of a request that names none; generation_timeout: one of /v1/generate, where it differs.
    base_url: before /files/… in answers, without a slash at its end.
    max_queue: requests that may wait, for the sentence that refuses another.
    """

    max_body_bytes: int = 40 * 2**20
    body_seconds: float = 30.0
    body_stall_seconds: float = 5.0
    output_format: ImageFormat = "png"
    timeout: float | None = 600.0
    generation_timeout: float | None = None
    base_url: str = ""
    max_queue: int = 256


class FileStore(Protocol):
    """Pictures that are answered as URLs. ``put`` raises ``CapacityError`` ``storage_full``."""

    async def put(self, data: bytes, extension: str) -> str:
        """The new file's id, ``im_…``."""
        ...


# Throws a model, or all of them, out of memory: how many left, how many are still loaded.
Purge = Callable[[str | None], Awaitable[tuple[int, int]]]


async def nothing_to_purge(name: str | None) -> tuple[int, int]:
    return 0, 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """What every dialect stands on. ``progress`` tells where a live job stands, by its id.

    files: None where nothing is kept; dialects that answer URLs are then not served.
    """

    submit: Submit
    catalog: Catalog
    health: HealthProbe
    options: ApiOptions
    intake: ImageIntake
    admit: Admit
    progress: Callable[[str], Progress | None] = lambda job_id: None
    purge: Purge = nothing_to_purge
    files: FileStore | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """One HTTP request but for its body.

    id: of the job, 16 hex digits. shown_id: the caller's own id where it sent a harmless one, else ``id``.
    started: by the monotonic clock. Header names are lower-case.
    """

    id: str
    shown_id: str
    path: str
    started: float
    headers: Mapping[str, str]
    path_params: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back over the wire."""

    body: bytes
    status: int = 200
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


class Call(Protocol):
    """A parsed request: what is to be computed, and whatever its dialect needs to word the answer."""

    @property
    def requests(self) -> Sequence[InferenceRequest]:
        """At least one; their ids are unique among live jobs."""
        ...


C = TypeVar("C", bound=Call)


class Dialect(Protocol[C]):
    """All that is particular to one contract. ``parse`` and ``read`` raise ``ServingError``."""

    def read(self, body: bytes, arrival: Arrival) -> object:
        """The body as plain values, cheaply; runs on the event loop."""
        ...

    async def parse(self, content: object, arrival: Arrival) -> C: ...

    async def render(self, call: C, results: Sequence[InferenceResult]) -> Answer:
        """The answer; ``results`` are in the order of ``call.requests``."""
        ...

    def refuse(self, error: ServingError, arrival: Arrival) -> Answer: ...


class Streaming(Dialect[C], Protocol[C]):
    """A dialect that can answer while the work goes on."""

    def streams(self, call: C) -> bool:
        """Whether this call asked for it."""
        ...

    def stream(self, call: C, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
        """Pieces of a ``text/event-stream``; errors come as events and are worded as such."""
        ...


Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """One line of the routing table; ``responses`` and ``openapi`` are documentation.

    public: answered without a key even where keys are required.
    """

    path: str
    handle: Handler
    methods: tuple[str, ...] = ("POST",)
    summary: str = ""
    responses: Mapping[int | str, dict[str, Any]] = field(default_factory=dict)
    openapi: Mapping[str, Any] | None = None
    public: bool = False
    documented: bool = True
