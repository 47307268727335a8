"""A picture made in this process: the same models, mux and dialect that a server has, for one request."""

import asyncio
import gc
import logging
import secrets
from collections.abc import Iterator
from typing import Any

import settings
from api.flat import FlatDialect
from api.intake import ImageIntake
from batching.mux import BatchMux, BatchPolicy
from command import failure
from command.display import Display
from command.failure import WRONG, Failure
from command.made import Made, made
from core.catalog import Catalog
from core.errors import ServingError
from core.request import Task
from core.service import port
from pipelines.manager import ModelManager, model_options
from pipelines.registry import SPECS, catalog
from serverless.modes import intake_options

_LOOK_SECONDS = 0.1


def picture(job_input: dict[str, Any], display: Display) -> Made:
    """Raises ``Failure``."""
    config = _settings()
    rows = rows_for(config, job_input.get("model"))
    _check_task(rows, job_input)
    logging.basicConfig(level="DEBUG" if config.log_level == "DEBUG" else "CRITICAL")
    models = ModelManager(rows, model_options(**config.loading))
    policy = BatchPolicy(**config.batching)
    with BatchMux(models.acquire, policy) as mux, ImageIntake(intake_options(config)) as intake:
        dialect = FlatDialect(catalog=rows, intake=intake)
        try:
            answer = asyncio.run(_answer(job_input, dialect, mux, models, display))
        except ServingError as error:
            raise failure.of(error) from None
    gc.freeze()  # or the interpreter takes torch's objects apart one by one, for over a second, to leave
    return made(answer)


async def _answer(
    job_input: dict[str, Any], dialect: FlatDialect, mux: BatchMux, models: ModelManager, display: Display
) -> dict[str, Any]:
    job = await dialect.parse(job_input, id=secrets.token_hex(8))
    work = asyncio.ensure_future(port(mux.submit)(job.request))
    try:
        while not (await asyncio.wait([work], timeout=_LOOK_SECONDS))[0]:
            progress, status = mux.progress(job.request.id), models.status()
            if status.state == "loading" or progress is None or progress.step == 0:
                display.stage(status.detail if status.state != "ready" else "preparing")
            else:
                display.steps(progress.step, progress.steps)
        return await dialect.render_output(job, await work)
    finally:
        work.cancel()


def rows_for(config: settings.Settings, model: str | None) -> Catalog:
    """Whoever types the command allows what it names. Raises ``Failure``."""
    wishes = dict(config.row)
    if model is not None:
        wishes["allowed"] = wishes["allowed"] | {model}
    try:
        return catalog(config.default_model, **wishes)
    except ServingError as error:
        raise Failure(f"{'--model' if model else 'DEFAULT_MODEL'}: {error.message}", WRONG) from None


def _check_task(rows: Catalog, job_input: dict[str, Any]) -> None:
    """A model that cannot do it is told before it is loaded. Raises ``Failure``."""
    task = Task.EDIT if "images" in job_input else Task.GENERATE
    spec = rows.get(job_input.get("model"))
    if task in spec.tasks:
        return
    able = ", ".join(row.name for row in SPECS if task in row.tasks)
    verb = "edit pictures" if task is Task.EDIT else "make a picture of a text"
    raise Failure(f"{spec.name} cannot {verb}; choose with --model or DEFAULT_MODEL one of {able}", WRONG)


def models() -> Iterator[str]:
    """One line for each model known here; * marks the default. Raises ``Failure``."""
    default = rows_for(_settings(), None).default.name
    width = max(len(spec.name) for spec in SPECS)
    for spec in SPECS:
        needs = f"{spec.vram_gb:g} GB on a GPU" if spec.vram_gb else "a GPU" if spec.needs_gpu else "no GPU"
        tasks = " and ".join(sorted(spec.tasks))
        mark = "*" if spec.name == default else " "
        steps = "" if spec.vision else f"{spec.steps} steps"  # a look is one forward
        yield f"{mark} {spec.name:<{width}}  {tasks:<17} {steps:>9}  {needs:<15}  {spec.licence}"


def _settings() -> settings.Settings:
    try:
        return settings.load()
    except settings.BadSettings as error:
        raise Failure(str(error), WRONG) from None
