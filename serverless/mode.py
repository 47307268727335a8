"""The RunPod mode put together: job handler, output guard, fitness checks, local test."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from api.fetch import GuardedFetch
from api.flat import FlatDialect
from api.intake import ImageIntake
from core.errors import ExecutionError
from core.pipeline import Catalog
from core.service import Submit
from serverless import worker
from serverless.fitness import checks
from serverless.jobs import JobHandler, Tell
from serverless.local import Recorder, printable
from serverless.output import MB, OutputGuard, refusal, renderer
from serverless.preflight import bucket_of
from settings import Settings


def take_jobs(
    settings: Settings,
    submit: Submit,
    catalog: Catalog,
    intake: ImageIntake,
    *,
    weights: Future[None],
    on_limit: Callable[[], object],
) -> None:
    """Serve RunPod's queue until SIGTERM; returns when the last answer was posted.

    weights:  done when the default model is loaded or cannot be.
    on_limit: answers what is unfinished ``drain_seconds`` after SIGTERM.
    """
    worker.serve(
        _handler(settings, submit, catalog, intake, worker.tell),
        slots=_slots(settings),
        fitness=checks(weights, submit, catalog.default),
        drain_seconds=settings.drain_seconds,
        on_limit=on_limit,
        log_level=settings.runpod_log_level,
    )


def run_once(
    settings: Settings, submit: Submit, catalog: Catalog, intake: ImageIntake, job: dict[str, Any]
) -> None:
    """One job here, its pictures saved. Raises ``SystemExit`` with 0, or 1 when it failed."""
    recorder = Recorder(submit, intake.encode, catalog, settings.output_dir or Path("out"))

    async def show(job_id: str, update: dict[str, object]) -> None:
        print(f"{update['state']}: step {update['step']} of {update['steps']}", flush=True)

    handle = _handler(settings, recorder, catalog, intake, show)

    async def handle_and_shorten(job: dict[str, Any]) -> dict[str, Any]:
        return printable(await handle(job))

    worker.run_once(handle_and_shorten, job, log_level=settings.runpod_log_level)


def refuse_all(sentence: str) -> None:
    """Answer every job with ``sentence``, until SIGTERM.

    For what a restart does not mend: a process that ends is only started again, and nobody reads why.
    """

    async def handle(job: dict[str, Any]) -> dict[str, Any]:
        return refusal(ExecutionError("pipeline_error", f"this worker cannot start: {sentence}"))

    worker.serve(handle, slots=1, drain_seconds=0, on_limit=lambda: None, log_level="INFO")


def _slots(settings: Settings) -> int:
    """One batch runs while the next one is read and decoded; with fewer, every second batch is half full."""
    return 2 * settings.batch_size


def _handler(
    settings: Settings, submit: Submit, catalog: Catalog, intake: ImageIntake, tell: Tell
) -> JobHandler:
    dialect = FlatDialect(
        catalog=catalog,
        intake=intake,
        output_format=settings.output_format,
        timeout=settings.request_timeout_seconds,
    )
    bucket = bucket_of(settings)
    uploads = GuardedFetch(
        max_bytes=MB,  # of an answer to an upload
        timeout=60,
        allow_hosts=settings.fetch_allow_hosts | ({_host(bucket.endpoint)} if bucket else set()),
    )
    guard = OutputGuard(renderer(dialect), int(settings.max_output_mb * MB), bucket, uploads.put)
    return JobHandler(submit, dialect, guard, tell, remember=_slots(settings))


def _host(url: str) -> str:
    """``host:port`` as ``FETCH_ALLOW_HOSTS`` names it: the operator chose this one."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or (80 if parts.scheme == 'http' else 443)}"
