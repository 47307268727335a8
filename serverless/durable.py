"""Jobs of our own queue: kept in DATA_DIR, carried out as RunPod's are, told of by webhook."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import orjson

from api import runpod_queue, vision_jobs
from api.body import parse_json
from api.fetch import GuardedFetch
from api.job_record import JobOutcome, JobRecord, StoreLimits
from api.job_runner import Work
from api.job_service import JobService, job_service, secret_of
from core.result import OnProgress
from serverless.execution import Execution
from settings import MIB, Settings

_WEBHOOK_SECONDS = 10.0  # below the sender's delay to its second try
_GB = 10**9


@contextmanager
def durable_jobs(
    settings: Settings, execution: Execution, vision: Work, *, concurrency: int
) -> Iterator[JobService | None]:
    """See ``api.job_service.job_service``. vision: carries out the jobs of the vision routes."""
    secret = settings.webhook_secret
    client = GuardedFetch(max_bytes=MIB, timeout=_WEBHOOK_SECONDS, allow_hosts=settings.fetch_allow_hosts)
    keeping = job_service(
        settings.data_dir,
        StoreLimits(
            max_live=settings.max_jobs,
            keep_seconds=settings.keep_jobs_hours * 3600,
            keep_bytes=int(settings.keep_jobs_gb * _GB),
        ),
        {runpod_queue.DIALECT: runpod_work(execution), vision_jobs.DIALECT: vision},
        {runpod_queue.DIALECT: runpod_queue.webhook_body, vision_jobs.DIALECT: vision_jobs.webhook_body},
        post=client.post,
        secret=secret_of(secret.get_secret_value()) if secret is not None else None,
        concurrency=concurrency,
    )
    with closing(client), keeping as jobs:
        yield jobs


def runpod_work(execution: Execution) -> Work:
    async def work(job: JobRecord, on_progress: OnProgress) -> JobOutcome:
        # The lease: a job that comes again may meet its last row still leaving the batch.
        answer = await execution(
            parse_json(job.body), on_progress, job_id=job.id, request_id=f"{job.id}/{job.lease}"
        )
        return JobOutcome(data=orjson.dumps(answer))

    return work
