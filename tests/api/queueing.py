"""The server of ``serving`` with a job store behind it, and a client for RunPod's paths."""

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api import runpod_queue, vision_jobs
from api.app import ApiOptions
from api.dialect import Services
from api.files import FileOptions, FileStore
from api.flat import FlatDialect
from api.gate import AccessOptions
from api.intake import ImageIntake
from api.job_record import StoreLimits
from api.job_service import JobService, job_service
from api.passthrough import Passthrough
from api.vision_jobs import vision_work
from api.vision_tasks import VisionTasks
from api.webhooks import Post
from core.catalog import Catalog
from core.request import InferenceRequest
from core.service import Health, Submit
from serverless.durable import runpod_work
from serverless.execution import Execution
from serverless.output import OutputGuard
from tests.api.serving import CATALOG, Answer, Painter, Served, paint, png, serving, text

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}
PICTURE = text(png(96, 64))


def wishes(seed: int = 7, **more: object) -> dict[str, object]:
    return {"prompt": "paint", "image_base64": PICTURE, "seed": seed, **more}


async def no_upload(url: str, body: bytes, content_type: str) -> None:
    raise AssertionError("nothing is uploaded here")


async def no_post(url: str, headers: Mapping[str, str], body: bytes) -> None:
    raise AssertionError("nobody is told here")


@dataclass(frozen=True)
class Queue:
    """``/v2/{endpoint_id}/…`` of a running server."""

    served: Served
    base: str = "/v2/any-endpoint"

    @property
    def painter(self) -> Painter:
        return self.served.painter

    def post(self, path: str, body: object = None, headers: dict[str, str] | None = None) -> Answer:
        data = b"" if body is None else json.dumps(body).encode()
        return self.served.client.request(
            "POST", f"{self.base}/{path}", data, {"Content-Type": "application/json"} | (headers or {})
        )

    def get(self, path: str) -> Any:
        answer = self.served.client.get(f"{self.base}/{path}")
        assert answer.status == 200, answer.body
        return answer.json()

    def run(self, asked: Mapping[str, object] | None = None, /, **beside: object) -> str:
        """The id of a new job."""
        answer = self.post("run", {"input": wishes() if asked is None else asked} | beside)
        assert answer.status == 200, answer.body
        assert answer.json().keys() == {"id", "status"}
        return str(answer.json()["id"])

    def ended(self, id: str) -> Any:
        job = self.get(f"status-sync/{id}?wait=20000")
        assert job["status"] in ENDED, job
        return job

    def begun(self) -> InferenceRequest:
        return self.painter.entered.get(timeout=10)


def seeing(submit: Submit, intake: ImageIntake, catalog: Catalog) -> Services:
    """What the jobs of vision models stand on."""
    return Services(
        submit=submit,
        catalog=catalog,
        health=lambda: Health(state="ready", model=catalog.default.name),
        options=ApiOptions(),
        intake=intake,
        admit=lambda: None,
        files=FileStore(FileOptions(folder=Path("never made"))),
    )


NO_ROUTES = Passthrough({})


@contextmanager
def queueing(
    folder: Path,
    *,
    limits: StoreLimits | None = None,
    post: Post = no_post,
    secret: bytes | None = None,
    passthrough: Passthrough = NO_ROUTES,
    output_limit: int = 18_000_000,
    concurrency: int = 4,
    catalog: Catalog = CATALOG,
    api: ApiOptions | None = None,
    access: AccessOptions | None = None,
) -> Iterator[Queue]:
    def keeping(submit: Submit, intake: ImageIntake) -> AbstractContextManager[JobService | None]:
        flat = FlatDialect(catalog=catalog, intake=intake, timeout=600)
        guard = OutputGuard(flat.render_output, output_limit, None, no_upload)
        services = seeing(submit, intake, catalog)
        execution = Execution(submit, flat, guard, passthrough, VisionTasks(services))
        return job_service(
            folder,
            limits or StoreLimits(min_free_bytes=0),
            {runpod_queue.DIALECT: runpod_work(execution), vision_jobs.DIALECT: vision_work(services)},
            {runpod_queue.DIALECT: runpod_queue.webhook_body, vision_jobs.DIALECT: vision_jobs.webhook_body},
            post=post,
            secret=secret,
            concurrency=concurrency,
        )

    with serving(api, keeping=keeping, catalog=catalog, access=access) as served:
        yield Queue(served)


def is_painted(output: Any, seed: int) -> bool:
    """Whether this is the answer to the job of that seed."""
    answer = Answer(200, {}, json.dumps(output).encode())
    return answer.picture().convert("RGB").getpixel((0, 0)) == tuple(paint(seed))
