"""Jobs for tests: made in one word, at a time that only a test moves."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from api.job_file import JobFile
from api.job_record import JobOutcome, JobRecord, NewJob
from core.result import OnProgress

START = 1_000_000.0


class WallClock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def new_job(body: bytes = b"body", owner: str = "ann", dialect: str = "echo", **fields: Any) -> NewJob:
    return NewJob(owner=owner, dialect=dialect, body=body, **fields)


@contextmanager
def table(folder: Path) -> Iterator[sqlite3.Connection]:
    """The tables in a file of their own, each statement a transaction."""
    file = JobFile(folder)
    db = file.connect()
    db.execute("PRAGMA synchronous = OFF")
    try:
        yield db
    finally:
        db.close()
        file.close()


async def echo(job: JobRecord, on_progress: OnProgress) -> JobOutcome:
    """Answers with the body."""
    return JobOutcome(data=job.body)
