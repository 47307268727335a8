"""What a dialect is to the server: it reads a body, makes requests of it, and words answer and refusal."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from api.files import FileStore
from api.images import ImageFormat
from api.intake import ImageIntake
from api.job_runner import JobRunner
from api.stream import Event
from core.catalog import Catalog
from core.errors import ServingError
from core.request import InferenceRequest
from core.result import InferenceResult, Progress
from core.service import Admit, HealthProbe, Submit
from core.stats import Stats


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiOptions:
    """body_seconds: for a body to arrive in full; body_stall_seconds: without a byte of it.

    timeout: deadline of a request that names none; generation_timeout: one of /v1/generate, where it differs.
    max_queue: requests that may wait, for the sentence that refuses another.
    profile: whose words /health and /metrics use: worker | firered | gateway | vision | sdxl.
    log_prompts: whether prompts stand in the log. metrics_enabled: else /metrics is empty.
    max_vision_images, max_request_pixels: of one request to a vision model. max_answer_bytes: of its JSON.
    """

    max_body_bytes: int = 40 * 2**20
    body_seconds: float = 30.0
    body_stall_seconds: float = 5.0
    output_format: ImageFormat = "png"
    images_response_format: Literal["b64_json", "url"] = "b64_json"
    timeout: float | None = 600.0
    profile: str = "worker"
    log_prompts: bool = False
    metrics_enabled: bool = True
    generation_timeout: float | None = None
    max_queue: int = 256
    max_vision_images: int = 32
    max_request_pixels: int = 100_000_000
    max_answer_bytes: int = 64 * 2**20


# Throws a model, or all of them, out of memory: how many left, how many are still loaded.
Purge = Callable[[str | None], Awaitable[tuple[int, int]]]


async def nothing_to_purge(name: str | None) -> tuple[int, int]:
    return 0, 0


# Brings a model into memory, by name; raises ``ServingError`` that says why it cannot be.
Load = Callable[[str], Awaitable[None]]


async def nothing_to_load(name: str) -> None:
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """What every dialect stands on. ``progress`` tells where a live job stands, by its id.

    jobs: carries out asynchronous jobs and keeps them; None where the store cannot be opened.
    """

    submit: Submit
    catalog: Catalog
    health: HealthProbe
    options: ApiOptions
    intake: ImageIntake
    admit: Admit
    files: FileStore
    progress: Callable[[str], Progress | None] = lambda job_id: None
    stats: Callable[[], Stats] = Stats
    jobs: JobRunner | None = None
    purge: Purge = nothing_to_purge
    load: Load = nothing_to_load


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """One HTTP request but for its body.

    id: of the job, 16 hex digits. shown_id: the caller's own id where it sent a harmless one, else ``id``.
    started: by the monotonic clock. Header names are lower-case.
    origin: ``scheme://host`` by which the caller reached us, as far as can be told from here.
    owner: stands for the caller's key, which it does not tell; "" while no keys are asked for.
    """

    id: str
    shown_id: str
    path: str
    started: float
    headers: Mapping[str, str]
    path_params: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""
    owner: str = ""


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
Refuse = Callable[[ServingError, Arrival], Answer]


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """One line of the routing table; ``responses`` and ``openapi`` are documentation.

    public: answered without a key even where keys are required.
    control: asks for or ends work that is there, or says how later work is to be done. It makes none, so no
        limit of a key holds it back.
    speaks: the dialect's name for log and metrics; "" is the module that words its answers.
    refuse: words what is refused before ``handle`` is called (no key, over a limit) and what that raises;
        None is the handler's own or its dialect's, and the flat one where it has none.
    """

    path: str
    handle: Handler
    methods: tuple[str, ...] = ("POST",)
    summary: str = ""
    responses: Mapping[int | str, dict[str, Any]] = field(default_factory=dict)
    openapi: Mapping[str, Any] | None = None
    public: bool = False
    control: bool = False
    documented: bool = True
    refuse: Refuse | None = None
    speaks: str = ""

    @property
    def dialect(self) -> str:
        """For log and metrics."""
        if self.speaks:
            return self.speaks
        speaker = getattr(self.handle, "dialect", self.handle)
        return str(speaker.__module__).removeprefix("api.").split(".")[0].removesuffix("_route")

    @property
    def refusal(self) -> Refuse | None:
        return self.refuse or getattr(getattr(self.handle, "dialect", self.handle), "refuse", None)
