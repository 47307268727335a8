"""A server process for the tests of signals: each job ends when a line arrives on standard input.

Prints its port once it listens. ``--import MODULE`` imports one in a thread at the same time, as a
worker does that loads its model; ``--drain SECONDS`` is the drain limit; ``--stuck`` never finishes draining;
``--large`` answers with 16 MB; ``--busy`` occupies the codec's only thread until a second line arrives, and
``--crowded`` all of the loop's own threads until the drain is over.
"""

import argparse
import asyncio
import importlib
import importlib.util
import os
import socket
import sys
import threading
from concurrent.futures import Future, wait
from dataclasses import replace

from api.app import ApiOptions, create_app
from api.files import FileOptions, FileStore
from api.intake import ImageIntake, IntakeOptions
from api.metrics import Metrics
from api.server import ServerOptions, serve
from core.catalog import Catalog
from core.errors import CapacityError
from core.request import Image, InferenceRequest
from core.result import InferenceResult, OnProgress
from core.service import Health
from core.spec import PipelineSpec
from core.stats import Stats
from pipelines.importing import undisturbed

arguments = argparse.ArgumentParser()
arguments.add_argument("--import", dest="module")
arguments.add_argument("--drain", type=float, default=30)
arguments.add_argument("--stuck", action="store_true")
arguments.add_argument("--large", action="store_true")
arguments.add_argument("--busy", action="store_true")
arguments.add_argument("--crowded", action="store_true")
options = arguments.parse_args()

jobs: list[tuple[InferenceRequest, Future[InferenceResult]]] = []
state = Health(state="ready", model="painter")
codec_is_free, drained = threading.Event(), threading.Event()
held: list[asyncio.Future[bool]] = []


async def submit(request: InferenceRequest, on_progress: OnProgress | None = None) -> InferenceResult:
    job: Future[InferenceResult] = Future()
    jobs.append((request, job))
    if options.busy:
        held.append(asyncio.ensure_future(intake.codec.finish(codec_is_free.wait)))
        await asyncio.sleep(0)
    print("accepted", flush=True)
    return await asyncio.wrap_future(job)


def finish_jobs() -> None:
    for _ in sys.stdin:
        if not jobs:
            codec_is_free.set()
            continue
        request, job = jobs.pop(0)
        width, height = request.canvas
        size = width * height * 3
        picture = Image(pixels=os.urandom(size) if options.large else bytes(size), width=width, height=height)
        job.set_result(InferenceResult(id=request.id, output=picture, model="painter", seed=1, steps=1))


def drain(seconds: float) -> None:
    global state
    state = replace(state, state="draining")
    if options.stuck:
        threading.Event().wait()
    late = wait([job for _, job in jobs], timeout=seconds).not_done
    for job in late:
        if not job.done():
            job.set_exception(CapacityError("shutting_down", "this server is shutting down"))
    drained.set()


def load() -> None:
    """As a worker's device thread does it."""
    global state
    with undisturbed():
        importlib.import_module(options.module)
    state = replace(state, state="ready")


def on_listening() -> None:
    if options.crowded:
        for _ in range(64):
            asyncio.get_running_loop().run_in_executor(None, drained.wait)
    print(port, flush=True)
    if options.module:
        threading.Thread(target=load, daemon=True).start()


if options.module:
    state = replace(state, state="loading")
threading.Thread(target=finish_jobs, daemon=True).start()
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
with ImageIntake(IntakeOptions(codec_threads=1)) as intake:
    catalog = Catalog(
        [PipelineSpec(name="painter", factory="x:y", source="builtin:painter")], default="painter"
    )
    serve(
        create_app(
            submit,
            catalog,
            lambda: state,
            ApiOptions(),
            intake=intake,
            admit=lambda: None,
            files=FileStore(FileOptions()),
            metrics=Metrics(lambda: state, Stats),
        ),
        ServerOptions(port=port, drain_seconds=options.drain, answer_seconds=0.2),
        drain=drain,
        on_listening=on_listening,
    )
