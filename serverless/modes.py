"""The three ways to run, put together from their parts: RunPod's queue, one job here, HTTP."""

import asyncio
import logging
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from api.fetch import GuardedFetch
from api.flat import FlatDialect
from api.images import ImageLimits
from api.intake import ImageIntake, IntakeOptions
from core.catalog import Catalog
from core.errors import CapacityError, ServingError
from core.result import Progress
from core.service import Admit, HealthProbe, Submit
from serverless import worker
from serverless.bucket import Bucket
from serverless.fitness import checks
from serverless.jobs import JobHandler, Tell
from serverless.local import Recorder, printable
from serverless.output import MB, OutputGuard, refusal
from settings import MIB, Settings, on_runpod

log = logging.getLogger("batchmux")


def intake_options(settings: Settings) -> IntakeOptions:
    return IntakeOptions(
        limits=ImageLimits(max_bytes=settings.max_image_mb * MIB, max_pixels=settings.max_image_pixels),
        codec_threads=settings.codec_threads,
        codec_waiting=settings.max_queue,
        held_bytes=settings.max_queue_mb * MIB,
        fetch_timeout=settings.fetch_timeout_seconds,
        fetch_allow_hosts=settings.fetch_allow_hosts,
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
        recorder = Recorder(self.submit, self.intake.encode, self.catalog, self.settings.output_dir)
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
        progress: Callable[[str], Progress | None],
        purge: Callable[[str | None], Future[tuple[int, int]]],
    ) -> None:
        """Serve HTTP until SIGTERM and the drain after it.

        on_listening: starts what would only slow the start down, once connections are accepted.
        purge: throws a model, or all, out of memory; see ``api.dialect.Purge``.
        """
        from api.app import ApiOptions, create_app
        from api.server import ServerOptions, serve

        settings = self.settings
        if settings.api_host not in ("127.0.0.1", "::1", "localhost"):
            log.warning(
                "NO AUTHENTICATION: everybody who can reach %s:%d can use this server; put it behind "
                "something that checks, or set API_HOST=127.0.0.1",
                settings.api_host,
                settings.api_port,
            )
        app = create_app(
            self.submit,
            self.catalog,
            health,
            ApiOptions(
                max_body_bytes=settings.max_body_mb * MIB,
                output_format=settings.output_format,
                timeout=settings.request_timeout_seconds,
                generation_timeout=settings.generation_timeout_seconds or None,
                base_url=settings.base_url.rstrip("/"),
                max_queue=settings.max_queue,
            ),
            intake=self.intake,
            admit=admit,
            progress=progress,
            purge=lambda name: asyncio.wrap_future(purge(name)),
        )
        options = ServerOptions(
            host=settings.api_host, port=settings.api_port, drain_seconds=settings.drain_seconds
        )
        serve(app, options, drain=drain, on_listening=lambda: _call(on_listening))

    @property
    def _slots(self) -> int:
        """One batch runs while the next is fetched and decoded; with fewer, every second one is half full."""
        return 2 * self.settings.batch_size

    def _handler(self, submit: Submit, tell: Tell) -> JobHandler:
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
        guard = OutputGuard(dialect.render_output, int(settings.max_output_mb * MB), bucket, uploads.put)
        return JobHandler(submit, dialect, guard, tell, remember=self._slots)


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


async def _show(job_id: str, update: dict[str, object]) -> None:
    print(f"{update['state']}: step {update['step']} of {update['steps']}", flush=True)


def _call(function: Callable[[], object]) -> None:
    function()


def _host(url: str) -> str:
    """``host:port`` as ``FETCH_ALLOW_HOSTS`` names it."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{f'[{host}]' if ':' in host else host}:{parts.port or (80 if parts.scheme == 'http' else 443)}"
