"""The three ways to run, put together from their parts: RunPod's queue, one job here, HTTP."""

import asyncio
import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from api.dialect import ApiOptions, Load, Purge, Services
from api.fetch import GuardedFetch
from api.files import FileOptions, FileStore
from api.flat import FlatDialect
from api.images import ImageLimits
from api.intake import ImageIntake, IntakeOptions
from api.openai_fields import Edit, Generation
from api.openai_images import OpenAIImages
from api.passthrough import Passthrough
from api.vision_jobs import vision_work
from api.vision_tasks import VisionTasks
from core.catalog import Catalog
from core.errors import CapacityError, ServingError
from core.result import Progress
from core.service import Admit, Health, HealthProbe, Submit
from core.stats import BatchingCounts, ModelCounts, Stats
from serverless import access, worker
from serverless.bucket import Bucket
from serverless.durable import durable_jobs
from serverless.execution import Execution
from serverless.fitness import checks
from serverless.jobs import JobHandler, Tell
from serverless.local import Recorder, printable
from serverless.output import MB, OutputGuard, refusal
from settings import MIB, Settings, on_runpod

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from api.job_service import JobService
    from api.tracing import Tracing

log = logging.getLogger("batchmux")


def intake_options(settings: Settings) -> IntakeOptions:
    return IntakeOptions(
        limits=ImageLimits(max_bytes=settings.max_image_mb * MIB, max_pixels=settings.max_image_pixels),
        codec_threads=settings.codec_threads,
        codec_waiting=settings.max_queue,
        held_bytes=settings.max_queue_mb * MIB,
        fetch_timeout=settings.fetch_timeout_seconds,
        fetch_allow_hosts=settings.fetch_allow_hosts,
        png_metadata=settings.png_metadata,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Modes:
    """``intake`` is open for as long as one of the methods runs."""

    settings: Settings
    catalog: Catalog
    submit: Submit
    intake: ImageIntake

    def take_jobs(
        self, weights: Future[None], on_limit: Callable[[], object], failed: Callable[[], bool]
    ) -> None:
        """Serve RunPod's queue until SIGTERM; returns when the last answer was posted.

        weights:  done when the default model is loaded or cannot be.
        on_limit: answers what is unfinished ``drain_seconds`` after SIGTERM.
        failed:   whether SIGTERM came from ourselves, because this process cannot go on.
        """
        worker.serve(
            self._handler(self.submit, worker.tell),
            slots=self._slots,
            fitness=checks(weights, self.submit, self.catalog.default),
            drain_seconds=self.settings.drain_seconds,
            on_limit=on_limit,
            failed=failed,
            log_level=self.settings.runpod_log_level,
        )

    def run_once(self, job: dict[str, Any]) -> None:
        """One job here, its pictures saved. Raises ``SystemExit`` with 0, or 1 when it failed."""
        recorder = Recorder(self.submit, self.intake, self.catalog, self.settings.output_dir)
        handle = self._handler(recorder, _show)

        async def handle_and_shorten(job: dict[str, Any]) -> dict[str, Any]:
            return printable(await handle(job))

        worker.run_once(handle_and_shorten, job, log_level=self.settings.runpod_log_level)

    def serve_http(
        self,
        health: HealthProbe,
        admit: Admit,
        drain: Callable[[float], object],
        on_listening: Callable[[], object],
        counts: tuple[Callable[[], BatchingCounts], Callable[[], ModelCounts]],
        progress: Callable[[str], Progress | None],
        memory: tuple[Callable[[str], Future[None]], Callable[[str | None], Future[tuple[int, int]]]],
    ) -> None:
        """Serve HTTP until SIGTERM and the drain after it.

        on_listening: starts what would only slow the start down, once connections are accepted.
        counts:       what the mux and the models have counted, for /metrics.
        memory: loads a model, and throws one or all out; see ``api.dialect.Load`` and ``Purge``.
        """
        from api.server import ServerOptions, serve

        settings, (load, purge) = self.settings, memory
        for warning in access.warnings(settings):
            log.warning(warning)
        options = ServerOptions(
            host=settings.api_host, port=settings.api_port, drain_seconds=settings.drain_seconds
        )
        with self.application(
            health,
            admit,
            partial(Stats.of, *counts),
            progress,
            (
                lambda name: asyncio.wrap_future(load(name)),
                lambda name: asyncio.wrap_future(purge(name)),
            ),
            jobs_at_once=self._slots,
        ) as (app, jobs):

            def listening() -> None:
                if jobs is not None:
                    jobs.start()
                on_listening()

            def drain_both(seconds: float) -> None:
                queued = None if jobs is None else jobs.drain(seconds)
                drain(seconds)
                if queued is not None:
                    queued.result()

            serve(app, options, drain=drain_both, on_listening=listening)

    @contextmanager
    def application(
        self,
        health: HealthProbe,
        admit: Admit,
        stats: Callable[[], Stats],
        progress: Callable[[str], Progress | None],
        memory: tuple[Load, Purge],
        *,
        jobs_at_once: int,
    ) -> "Iterator[tuple[ASGIApp, JobService | None]]":
        """The HTTP application, and the jobs it keeps, which who serves it starts and drains.

        memory: loads a model, and throws one or all out.
        """
        from api.app import create_app
        from api.metrics import Metrics

        settings, (load, purge) = self.settings, memory
        tracing = _tracing(settings.otel_exporter_otlp_endpoint)
        metrics = Metrics(health, stats)
        submit = metrics.counted(self.submit if tracing is None else tracing.traced(self.submit))
        files = FileStore(
            FileOptions(
                folder=settings.data_dir,
                base_url=settings.base_url,
                keep_seconds=settings.keep_files_hours * 3600,
                keep_bytes=int(settings.keep_files_gb * 10**9),
            )
        )
        seen = vision_work(self._services(submit, max_answer_bytes=settings.max_answer_mb * MIB))
        with durable_jobs(settings, self._execution(submit), seen, concurrency=jobs_at_once) as jobs:
            yield (
                create_app(
                    submit,
                    self.catalog,
                    health,
                    ApiOptions(
                        max_body_bytes=settings.max_body_mb * MIB,
                        output_format=settings.output_format,
                        images_response_format=settings.images_default_response_format,
                        timeout=settings.request_timeout_seconds,
                        generation_timeout=settings.generation_timeout_seconds or None,
                        max_queue=settings.max_queue,
                        profile=settings.api_profile,
                        log_prompts=settings.log_prompts,
                        metrics_enabled=settings.metrics_enabled,
                        max_vision_images=settings.pictures_at_once,
                        max_request_pixels=settings.max_request_pixels,
                        max_answer_bytes=settings.max_answer_mb * MIB,
                    ),
                    intake=self.intake,
                    admit=admit,
                    files=files,
                    metrics=metrics,
                    progress=progress,
                    purge=purge,
                    load=load,
                    stats=stats,
                    access=access.options(settings),
                    tracing=tracing,
                    job_runner=None if jobs is None else jobs.runner,
                ),
                jobs,
            )
        if tracing is not None:
            tracing.close()

    @property
    def _slots(self) -> int:
        """One batch runs while the next is fetched and decoded; with fewer, every second one is half full."""
        return 2 * self.settings.batch_size

    def _handler(self, submit: Submit, tell: Tell) -> JobHandler:
        return JobHandler(self._execution(submit), tell, remember=self._slots)

    def _execution(self, submit: Submit) -> Execution:
        settings = self.settings
        dialect = FlatDialect(
            catalog=self.catalog,
            intake=self.intake,
            output_format=settings.output_format,
            timeout=settings.request_timeout_seconds,
        )
        bucket = Bucket.of_settings(settings)
        chosen = {_host(bucket.endpoint)} if bucket else set[str]()
        uploads = GuardedFetch(max_bytes=MIB, timeout=60, allow_hosts=settings.fetch_allow_hosts | chosen)
        limit = int(settings.max_output_mb * MB)
        guard = OutputGuard(dialect.render_output, limit, bucket, uploads.put)
        services = self._services(submit, max_answer_bytes=limit)
        return Execution(submit, dialect, guard, _openai(services), VisionTasks(services))

    def _services(self, submit: Submit, *, max_answer_bytes: int) -> Services:
        """For dialects whose requests come as jobs; nobody is refused here, and no address is given away."""
        settings = self.settings
        return Services(
            submit=submit,
            catalog=self.catalog,
            health=lambda: Health(state="ready", model=self.catalog.default.name),
            options=ApiOptions(
                output_format=settings.output_format,
                timeout=settings.request_timeout_seconds,
                max_vision_images=settings.pictures_at_once,
                max_request_pixels=settings.max_request_pixels,
                max_answer_bytes=max_answer_bytes,
            ),
            intake=self.intake,
            admit=lambda: None,
            files=FileStore(FileOptions(folder=settings.data_dir)),
        )


def _openai(services: Services) -> Passthrough:
    """OpenAI's requests as jobs; they carry their pictures, for a worker of the queue has no address."""
    return Passthrough(
        {
            "/v1/images/generations": OpenAIImages(services, Generation),
            "/v1/images/edits": OpenAIImages(services, Edit),
        }
    )


def cannot_start(error: Exception, *, serving: bool) -> int:
    """Say why on stderr. The exit status, 2.

    On RunPod a process that ends is started again and nobody reads its log, so there every job is
    answered with the reason instead, until SIGTERM; then the status is 0.
    """
    sentence = f"DEFAULT_MODEL or ALLOWED_MODELS: {error}" if isinstance(error, ServingError) else str(error)
    print(sentence, file=sys.stderr, flush=True)
    if not (serving and on_runpod()):
        return 2
    fault = CapacityError("not_ready", f"this worker cannot start: {sentence}", retryable=False)
    answer = refusal(fault)

    async def handle(job: dict[str, Any]) -> dict[str, Any]:
        return dict(answer)

    worker.serve(handle, slots=1, drain_seconds=0, on_limit=int, failed=lambda: False, log_level="INFO")
    return 0


def _tracing(endpoint: str | None) -> "Tracing | None":
    """OpenTelemetry is imported by those alone who asked for it."""
    if not endpoint:
        return None
    from api.tracing import Tracing

    return Tracing.to(endpoint)


async def _show(job_id: str, update: dict[str, object]) -> None:
    print(f"{update['state']}: step {update['step']} of {update['steps']}", flush=True)


def _host(url: str) -> str:
    """``host:port`` as ``FETCH_ALLOW_HOSTS`` names it."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{f'[{host}]' if ':' in host else host}:{parts.port or (80 if parts.scheme == 'http' else 443)}"
