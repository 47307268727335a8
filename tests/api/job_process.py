"""A process of the job store and its runner, made to die: thirty jobs, each told of on standard output.

Arguments: the folder, a seed, the number of points after which it kills itself (0: it lives), and the name
of a planted bug or ``sound``. It prints ``ack N ID`` once a job is acknowledged, ``start ID`` when its work
begins, ``done ID`` once the store has taken its result, and ``end`` when all have ended. Started again in
the same folder it asks for the same thirty jobs by their idempotency keys.
"""

import asyncio
import os
import random
import signal
import sqlite3
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from api import job_table
from api.job_record import JobOutcome, JobRecord, JobState, NewJob
from api.job_runner import JobRunner
from api.job_store import JobStore
from api.job_writer import JobWriter, Task
from core.errors import RequestError
from core.result import OnProgress, Progress

JOBS = 30
OWNERS = 3


def result_of(body: bytes) -> bytes:
    return body * 2000  # of several pages


def tell(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # at once and whole: nothing told is lost with the process


class Points:
    """Instants at which this process may die: every statement and what lies around it."""

    def __init__(self, last: int) -> None:
        self._left = last

    def __call__(self, *_: object) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Mortal(JobWriter):
    point: Points

    def __init__(self, connection: sqlite3.Connection) -> None:
        connection.set_trace_callback(self.point)  # before each statement, BEGIN and COMMIT among them
        super().__init__(connection)

    def _transact(self, operations: Sequence[Any]) -> list[Any]:
        answers = super()._transact(operations)
        self.point()  # committed, and nobody knows
        return answers


class AcksBeforeCommit(Mortal):
    """A planted bug: answers are given inside the transaction, on a disk that takes its time."""

    def _serve(self, group: Sequence[Task]) -> None:
        live = [task for task in group if task[2].set_running_or_notify_cancel()]
        self._db.execute("BEGIN IMMEDIATE")
        for operation, _, future in live:
            future.set_result(operation(self._db))
        threading.Event().wait(0.003)
        self._db.execute("COMMIT")


class Store(JobStore):
    async def succeed(self, id: str, lease: int, outcome: JobOutcome) -> bool:
        counted = await super().succeed(id, lease, outcome)
        if counted:
            tell(f"done {id}")
        return counted


class Patient(Store):
    """Goes with the bug above, which shows in reads at once; this is about what a crash shows."""

    async def get(self, owner: str, id: str) -> JobRecord:
        while True:
            try:
                return await super().get(owner, id)
            except RequestError:
                await asyncio.sleep(0.001)


class TwoTransactions(Store):
    """A planted bug: the state first, the result after it."""

    async def succeed(self, id: str, lease: int, outcome: JobOutcome) -> bool:
        counted = await super().succeed(id, lease, JobOutcome(data=b""))
        await self._write(partial(put_result, id=id, outcome=outcome))
        return counted


class RunsBeforeClaiming(Store):
    """A planted bug: that a run has begun is not made durable first."""

    async def claim(self, limit: int) -> list[JobRecord]:
        taken: list[JobRecord] = []

        def peek(db: sqlite3.Connection) -> None:
            taken.extend(job_table.claim(db, limit, self.limits, self.clock()))
            raise LookupError  # which rolls it back

        try:
            await self._write(peek)
        except LookupError:
            for job in taken:
                tell(f"start {job.id}")
        return await super().claim(limit)


class ForgetsTheRunning(Store):
    """A planted bug: what a dead process left running is nobody's."""

    def _recover(self, connection: sqlite3.Connection) -> None: ...


class RunsAgain(Store):
    """A planted bug: at the start everything that was ever begun is queued again."""

    def _recover(self, connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM result")
        connection.execute("INSERT OR IGNORE INTO body SELECT seq, 'job ' || idempotency_key FROM job")
        connection.execute("UPDATE job SET state = 'queued' WHERE attempts BETWEEN 1 AND 2")


def put_result(db: sqlite3.Connection, id: str, outcome: JobOutcome) -> None:
    db.execute(
        "UPDATE result SET data = ? WHERE seq = (SELECT seq FROM job WHERE id = ?)", (outcome.data, id)
    )


BUGS: dict[str, tuple[type[Store], type[Mortal]]] = {
    "sound": (Store, Mortal),
    "acks-before-commit": (Patient, AcksBeforeCommit),
    "two-transactions": (TwoTransactions, Mortal),
    "runs-before-claiming": (RunsBeforeClaiming, Mortal),
    "forgets-the-running": (ForgetsTheRunning, Mortal),
    "runs-again": (RunsAgain, Mortal),
}


async def live(folder: Path, chance: random.Random, store_type: type[Store]) -> None:
    async def work(job: JobRecord, on_progress: OnProgress) -> JobOutcome:
        if store_type is not RunsBeforeClaiming:
            tell(f"start {job.id}")
        on_progress(Progress(state="running", step=1, steps=2))
        await asyncio.sleep(chance.choice((0, 0, 0.002)))
        return JobOutcome(data=result_of(job.body))

    async def see_through(number: int) -> None:
        owner = f"owner {number % OWNERS}"
        body = b"job %d" % number
        job, _ = await runner.create(NewJob(owner=owner, dialect="x", body=body, idempotency_key=str(number)))
        tell(f"ack {number} {job.id}")
        job = await runner.wait(owner, job.id, 5)
        assert job.state in (JobState.SUCCEEDED, JobState.FAILED), f"a job is stuck {job.state}"

    with store_type(folder) as store:
        runner = JobRunner(store, {"x": work}, concurrency=4)
        runner.start()
        numbers = list(range(JOBS))
        chance.shuffle(numbers)
        await asyncio.gather(*(see_through(number) for number in numbers))
        await runner.drain(1)
    tell("end")


if __name__ == "__main__":
    folder, seed, last, bug = sys.argv[1:]
    store_type, writer_type = BUGS[bug]
    writer_type.point = Points(int(last))
    store_type.writer_type = writer_type
    asyncio.run(live(Path(folder), random.Random(int(seed)), store_type))
