"""The program: settings → models → mux → RunPod's job loop, one job on this machine, or an HTTP server."""

import gc
import logging
import os
import signal
import sys
from functools import partial
from typing import Any

import settings
from api.intake import ImageIntake
from batching.mux import BatchMux, BatchPolicy
from core.catalog import Catalog
from core.errors import ServingError
from core.service import Health, port
from pipelines import download
from pipelines.manager import ModelManager, model_options
from pipelines.registry import catalog
from serverless import local, modes, usage

log = logging.getLogger("batchmux")


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in usage.SUBCOMMANDS:
        from command import app

        return app.run(arguments)
    command = usage.parse(arguments, settings.describe())
    try:
        config = settings.load()
        rows = catalog(config.default_model, **config.row)
        if command.models:
            options = model_options(**config.loading)
            return download.run(command.models, rows.default.name, config.row, options, verify=command.verify)
        if command.check:
            from serverless import preflight

            return preflight.report(config, rows.default)
        served = config.standalone_mode or settings.on_runpod() or command.for_sdk
        job = local.job_for(command.test_input, config.output_dir, needed=not served)
    except (settings.BadSettings, local.BadTestInput, ServingError) as error:
        return modes.cannot_start(error, serving=command.serving)
    logging.basicConfig(level=config.log_level, format="%(levelname)-7s| %(name)s | %(message)s")
    return run(config, rows, ModelManager(rows, model_options(**config.loading)), job)


def run(config: settings.Settings, rows: Catalog, models: ModelManager, job: dict[str, Any] | None) -> int:
    """One of the three modes until its end; 0 when all went well. Tests bring their own ``models``."""
    fatal: list[str] = []

    def end(reason: str) -> None:
        fatal.append(reason)
        if job is None:  # else its own answer is the end
            os.kill(os.getpid(), signal.SIGTERM)  # which both loops answer by finishing what they hold

    def health() -> Health:
        stats, known = mux.stats(), models.status()
        return Health.of(rows.default.name, known, stats.counts, stats.draining, stats.fatal)

    policy, pictures = BatchPolicy(**config.batching), modes.intake_options(config)
    with BatchMux(models.acquire, policy, on_fatal=end) as mux, ImageIntake(pictures) as intake:
        mode = modes.Modes(settings=config, catalog=rows, submit=port(mux.submit), intake=intake)
        warm, counts = partial(mux.warm, rows.default.name), (mux.stats, models.counts)
        if job is not None:
            mode.run_once(job)
        elif config.standalone_mode:
            memory = (mux.warm, partial(mux.between, models.evict))
            mode.serve_http(health, mux.admit, mux.drain, warm, counts, mux.progress, memory)
        else:
            mode.take_jobs(warm(), on_limit=partial(mux.drain, 0), failed=lambda: bool(fatal))
        log.info("ended with %s", mux.stats())
    gc.freeze()  # or the interpreter takes torch's objects apart one by one, for over a second, to leave
    return 1 if fatal else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
