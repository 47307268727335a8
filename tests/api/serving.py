"""A real server on loopback around a submit that paints, for tests that speak HTTP to it."""

import asyncio
import base64
import http.client
import io
import json
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from PIL import Image as Pillow

from api.app import AccessOptions, ApiOptions, create_app
from api.dialect import Load, Purge, nothing_to_load, nothing_to_purge
from api.files import FileOptions, FileStore
from api.intake import ImageIntake, IntakeOptions
from api.job_service import JobService
from api.metrics import Metrics
from api.server import ServerOptions, make_server
from core.catalog import Catalog
from core.errors import ServingError
from core.request import Image, InferenceRequest, Task
from core.result import InferenceResult, OnProgress, Progress
from core.service import Health, Submit
from core.spec import PipelineSpec
from core.stats import Stats
from core.vision import Findings
from tests.api.findings import found_in

if TYPE_CHECKING:
    from api.tracing import Tracing

PAINTER = PipelineSpec(
    name="painter", factory="none:none", source="builtin:painter", aliases=("org/painter",)
)
ARTIST = PipelineSpec(
    name="artist",
    factory="none:none",
    source="builtin:artist",
    tasks=frozenset({Task.GENERATE, Task.EDIT}),
    strength=0.6,
    masks=True,
    step_cache=True,
    adapters=frozenset({"comic", "pencil"}),
)
DREAMER = PipelineSpec(
    name="dreamer", factory="none:none", source="builtin:dreamer", tasks=frozenset({Task.GENERATE})
)
CATALOG = Catalog([PAINTER, ARTIST, DREAMER], default="painter")


def paint(seed: int) -> bytes:
    return bytes((seed % 256, seed // 256 % 256, 77))


# What no error body may hold: our own paths, tracebacks and addresses.
INSIDE = re.compile(
    rb"Traceback|File \"|/usr/|/home/|/work|site-packages|\.py\b|PIL\.|0x[0-9a-f]{6}|127\.0\.0\.1"
)


class Painter:
    """A submit that answers with its request's canvas in the seed's colour, when its gate is open."""

    def __init__(self) -> None:
        self.entered: queue.Queue[InferenceRequest] = queue.Queue()
        self.cancelled: queue.Queue[str] = queue.Queue()
        self.fault: BaseException | None = None
        self.refusal: ServingError | None = None  # of newcomers, before they are read
        self.report: OnProgress | None = None  # of the request that came last
        self.noise = False  # an answer that does not compress
        self._gate: Future[None] = Future()
        self._gate.set_result(None)

    def shut(self) -> None:
        self._gate = Future()

    def open(self) -> None:
        self._gate.set_result(None)

    def admit(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    async def __call__(
        self, request: InferenceRequest, on_progress: OnProgress | None = None
    ) -> InferenceResult:
        self.report = on_progress
        self.entered.put(request)
        try:
            await asyncio.shield(asyncio.wrap_future(self._gate))
        except asyncio.CancelledError:
            self.cancelled.put(request.id)
            raise
        for step in range(request.previews if on_progress else 0):
            small = Image(pixels=paint(request.seed + step) * 4, width=2, height=2)
            assert on_progress is not None
            on_progress(Progress(state="running", step=step + 1, steps=request.steps, preview=small))
        if self.fault is not None:
            raise self.fault
        if request.ask is not None:
            return self._answer(request, found_in(request))
        width, height = request.canvas
        pixels = os.urandom(width * height * 3) if self.noise else paint(request.seed) * (width * height)
        return self._answer(request, Image(pixels=pixels, width=width, height=height))

    def _answer(self, request: InferenceRequest, output: Image | Findings) -> InferenceResult:
        return InferenceResult(
            id=request.id,
            output=output,
            model=request.model,
            seed=request.seed,
            steps=request.steps,
            queue_seconds=0.25,
            inference_seconds=1.5,
            batch_size=3,
        )


@dataclass
class Probe:
    """Health that a test sets."""

    health: Health = field(default_factory=lambda: Health(state="ready", model="painter", gpu_available=True))

    def __call__(self) -> Health:
        return self.health

    def say(self, state: str, detail: str = "", retry_after: float | None = 5.0) -> None:
        self.health = replace(self.health, state=state, detail=detail, retry_after=retry_after)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return "ok" if self.status == 200 else str(self.json()["code"])

    def picture(self) -> Pillow.Image:
        return Pillow.open(io.BytesIO(base64.b64decode(self.json()["image"], validate=True)))


class Client:
    """One request per connection, over a real socket."""

    def __init__(self, port: int, timeout: float = 20) -> None:
        self.port = port
        self._timeout = timeout

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self._timeout)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            content = response.read()
            named = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, named, content)
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def run(self, wishes: object, path: str = "/run", headers: dict[str, str] | None = None) -> Answer:
        body = json.dumps({"input": wishes}).encode()
        return self.request("POST", path, body, {"Content-Type": "application/json"} | (headers or {}))

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


@dataclass
class Served:
    client: Client
    painter: Painter
    probe: Probe
    connections: Callable[[], int]


Keeping = Callable[[Submit, ImageIntake], AbstractContextManager[JobService | None]]


def _keeps_nothing(submit: Submit, intake: ImageIntake) -> AbstractContextManager[None]:
    return nullcontext()


def unserved(intake: ImageIntake, access: AccessOptions | None = None) -> FastAPI:
    """The application without a server, for those who ask what it declares."""

    def health() -> Health:
        return Health(state="ready", model="painter")

    return create_app(
        Painter(),
        CATALOG,
        health,
        ApiOptions(),
        intake=intake,
        files=FileStore(FileOptions(folder=Path("never made"))),
        metrics=Metrics(health, Stats),
        admit=lambda: None,
        access=access,
    )


@contextmanager
def serving(
    api: ApiOptions | None = None,
    images: IntakeOptions | None = None,
    server: ServerOptions | None = None,
    intake: ImageIntake | None = None,
    files: FileOptions | FileStore | None = None,
    clock: Callable[[], float] = time.time,
    submit: Submit | None = None,
    access: AccessOptions | None = None,
    stats: Callable[[], Stats] = Stats,
    keeping: Keeping = _keeps_nothing,
    catalog: Catalog = CATALOG,
    tracing: "Tracing | None" = None,
    purge: Purge = nothing_to_purge,
    load: Load = nothing_to_load,
    progress: Callable[[str], Progress | None] = lambda job_id: None,
) -> Iterator[Served]:
    """The application under its real server, in a thread of its own; ``keeping`` opens a job store."""
    painter, probe = Painter(), Probe()
    listener = socket.create_server(("127.0.0.1", 0))
    listening = threading.Event()
    with (
        intake or ImageIntake(images or IntakeOptions(codec_threads=2)) as used,
        TemporaryDirectory(prefix="batchmux") as folder,
        ExitStack() as stack,
    ):
        metrics = Metrics(probe, stats)
        whole = submit or painter
        observed = metrics.counted(whole if tracing is None else tracing.traced(whole))
        jobs = stack.enter_context(keeping(observed, used))
        app = create_app(
            observed,
            catalog,
            probe,
            api or ApiOptions(),
            intake=used,
            admit=painter.admit,
            files=files
            if isinstance(files, FileStore)
            else FileStore(files or FileOptions(folder=Path(folder)), clock),
            metrics=metrics,
            access=access,
            stats=stats,
            job_runner=None if jobs is None else jobs.runner,
            tracing=tracing,
            progress=progress,
            purge=purge,
            load=load,
        )

        def on_listening() -> None:
            if jobs is not None:
                jobs.start()
            listening.set()

        running = make_server(
            app, server or ServerOptions(), drain=lambda seconds: None, on_listening=on_listening
        )
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        try:
            assert listening.wait(10)
            yield Served(
                Client(listener.getsockname()[1]),
                painter,
                probe,
                lambda: len(running.server_state.connections),
            )
        finally:
            if jobs is not None:
                jobs.drain(0).result(10)
            running.should_exit = True
            thread.join(15)
            assert not thread.is_alive()


def png(
    width: int = 96, height: int = 64, colour: tuple[int, ...] = (10, 20, 30), mode: str = "RGB"
) -> bytes:
    out = io.BytesIO()
    Pillow.new(mode, (width, height), colour).save(out, "PNG")
    return out.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()
