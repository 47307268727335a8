"""Every route of the schema, asked what fits it and what does not: the answer is one it documents.

The routes are those the schema lists, so a new dialect is walked without a line here.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from api import runpod_queue, vision_jobs
from api.app import ApiOptions, create_app
from api.budget import Lease
from api.files import FileOptions, FileStore
from api.flat import FlatDialect
from api.intake import ImageIntake, IntakeOptions
from api.job_record import StoreLimits
from api.job_service import JobService, job_service
from api.metrics import Metrics
from api.vision_jobs import vision_work
from api.vision_tasks import VisionTasks
from core.catalog import Catalog
from core.service import Submit
from core.stats import Stats
from serverless.durable import runpod_work
from serverless.execution import Execution
from serverless.output import OutputGuard
from tests.api.findings import SEERS
from tests.api.queueing import NO_ROUTES, no_post, no_upload, seeing
from tests.api.serving import ARTIST, PAINTER, Painter, Probe, Served, png, serving

load_all_checks()
WANTED = CHECKS.get_by_names(
    [
        *("not_a_server_error", "status_code_conformance"),
        *("content_type_conformance", "response_schema_conformance"),
    ]
)
# The default can do everything, so that few bodies are refused for what they lack.
ROWS = Catalog([ARTIST, PAINTER, *SEERS], default="artist")
EXAMPLES = 600  # of all routes together: some twenty seconds of one core


async def fetch(url: str, lease: Lease) -> bytes:
    """Whatever address is made up, nobody is asked."""
    return png()


def application() -> FastAPI:
    with ImageIntake(IntakeOptions(), fetch) as intake:
        painter = Painter()
        return create_app(
            painter,
            ROWS,
            Probe(),
            ApiOptions(),
            intake=intake,
            admit=painter.admit,
            files=FileStore(FileOptions(folder=Path("never made"))),
            metrics=Metrics(Probe(), Stats),
        )


APP = application()
SCHEMA: Any = schemathesis.openapi.from_dict(APP.openapi())
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations()]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("jobs")

    def keeping(submit: Submit, intake: ImageIntake) -> AbstractContextManager[JobService | None]:
        flat = FlatDialect(catalog=ROWS, intake=intake, timeout=600)
        guard = OutputGuard(flat.render_output, 18_000_000, None, no_upload)
        services = seeing(submit, intake, ROWS)
        work = runpod_work(Execution(submit, flat, guard, NO_ROUTES, VisionTasks(services)))
        return job_service(
            folder,
            StoreLimits(min_free_bytes=0),
            {runpod_queue.DIALECT: work, vision_jobs.DIALECT: vision_work(services)},
            {runpod_queue.DIALECT: runpod_queue.webhook_body, vision_jobs.DIALECT: vision_jobs.webhook_body},
            post=no_post,
            secret=None,
            concurrency=4,
        )

    intake = ImageIntake(IntakeOptions(codec_threads=2), fetch)
    with serving(intake=intake, catalog=ROWS, keeping=keeping) as running:
        yield running


WALKS = [
    pytest.param(operation, mode, id=f"{operation.label} {mode.value}")
    for operation in OPERATIONS
    for mode in GenerationMode
    # Where nothing is taken, nothing can be wrong.
    if mode is GenerationMode.POSITIVE or operation.body or operation.query or operation.path_parameters
]


@pytest.mark.parametrize(("operation", "mode"), WALKS)
def test_every_answer_is_a_documented_one(served: Served, operation: Any, mode: GenerationMode) -> None:
    """Clients are generated from the schema: a status or a body it does not know is one they cannot read."""
    base = f"http://127.0.0.1:{served.client.port}"
    with requests.Session() as session:

        @settings(
            max_examples=max(5, EXAMPLES // len(WALKS)),
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            response = case.call(base_url=base, session=session, timeout=20)
            case.validate_response(response, checks=WANTED)

        ask()


def test_a_missing_key_is_documented_wherever_one_can_be_asked_for() -> None:
    """A client made from the schema must be able to read that answer, and to know where none is needed."""
    documented = {
        f"{method.upper()} {path}": "401" in operation["responses"]
        for path, operations in APP.openapi()["paths"].items()
        for method, operation in operations.items()
    }
    protected = {
        f"{method} {endpoint.path.replace(':path', '')}": not endpoint.public
        for endpoint in APP.state.endpoints
        for method in endpoint.methods
        if endpoint.documented
    }
    assert documented == protected
    assert {True, False} == set(protected.values())


def test_the_schema_lists_what_is_served() -> None:
    """A walk of no routes would find no fault."""
    assert {"POST /run", "POST /runsync", "GET /health"} <= {operation.label for operation in OPERATIONS}
