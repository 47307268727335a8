"""``JobStore``: durable jobs, awaited. Every method that changes something returns after its commit.

One thread writes and a few read, each over a connection of its own; this is the place where they and the
event loop meet. What the jobs are is in ``api.job_record``, what happens to them in ``api.job_table``.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self, TypeVar

from api import job_lookup, job_outbox, job_retention, job_table
from api.job_file import JobFile
from api.job_outbox import OwedCall
from api.job_record import JobOutcome, JobPage, JobRecord, JobState, NewJob, StoreLimits
from api.job_writer import JobWriter, refusal
from core.errors import CapacityError, ServingError

T = TypeVar("T")

_READERS = 2


class JobStore:
    """The jobs of a folder. Use from one event loop; open and close it from anywhere.

    Opening queues again what a dead process left running. Raises ``UnusableStore``.
    Every method raises ``CapacityError``: ``storage_full`` or ``not_ready`` where the disk refuses.

    clock: the wall clock, in seconds.
    """

    writer_type: type[JobWriter] = JobWriter

    def __init__(
        self, folder: Path, limits: StoreLimits | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.limits = limits or StoreLimits()
        self.clock = clock
        self._closed = False
        self._file = JobFile(folder)
        try:
            writing = self._file.connect()
            self._recover(writing)
            self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()
            for _ in range(_READERS):
                self._idle.put(self._file.connect(reader=True))
        except BaseException:
            self._file.close()
            raise
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="job-reader")
        self._writer = self.writer_type(writing)

    @property
    def commits(self) -> int:
        """Transactions since it was opened."""
        return self._writer.commits

    def close(self) -> None:
        self._closed = True
        self._writer.close()
        self._readers.shutdown()
        for _ in range(_READERS):
            self._idle.get().close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # For those who ask: all but the counts of everything name the owner.

    async def create(self, new: NewJob) -> tuple[JobRecord, bool]:
        """The job, and whether it is new: the same idempotency key and body name the same job.

        Raises ``RequestError`` ``conflict`` (that key, another body) and ``CapacityError`` ``queue_full``.
        """
        free = self._file.free_bytes()
        create = partial(job_table.create, new=new, limits=self.limits, now=self.clock(), free_bytes=free)
        return await self._write(create, len(new.body))

    async def get(self, owner: str, id: str) -> JobRecord:
        """With its result. Raises ``RequestError`` ``job_not_found``, or ``expired`` (410) for a day after
        the job was forgotten."""
        return await self._read(partial(job_lookup.get, owner=owner, id=id))

    async def page(
        self,
        owner: str,
        *,
        after: str | None = None,
        limit: int = 50,
        states: Collection[JobState] = (),
    ) -> JobPage:
        """An owner's jobs, the newest first, without results; no ``states`` means all. Raises
        ``RequestError`` ``invalid_parameter`` when ``after`` is none of ours."""
        return await self._read(
            partial(job_lookup.page, owner=owner, after=after, limit=limit, states=states)
        )

    async def counts(self, owner: str | None = None) -> dict[JobState, int]:
        """Jobs that are kept, by state: of an owner, or of everybody."""
        return await self._read(partial(job_lookup.counts, owner=owner))

    async def cancel(self, owner: str, id: str) -> JobRecord:
        """The job after it; one that had ended stays as it was. Raises as ``get`` does."""
        return await self._write(partial(job_table.cancel, owner=owner, id=id, now=self.clock()))

    async def drop(self, owner: str, id: str) -> None:
        """Forget a job that has ended; one that has not, or is not there, stays as it is."""
        await self._write(
            partial(job_retention.drop, owner=owner, id=id, limits=self.limits, now=self.clock())
        )

    async def retried(self) -> int:
        """Jobs that are kept, of everybody, and were begun more than once."""
        return await self._read(job_lookup.retried)

    async def retry(self, owner: str, id: str) -> JobRecord:
        """Queue a job again that failed or took too long. Raises as ``get`` does, ``RequestError``
        ``conflict`` for any other, and ``CapacityError`` ``queue_full``."""
        return await self._write(
            partial(job_table.retry, owner=owner, id=id, limits=self.limits, now=self.clock())
        )

    async def purge_queue(self, owner: str) -> list[str]:
        """Cancel what the owner has waiting; the ids."""
        return await self._write(partial(job_table.purge_queue, owner=owner, now=self.clock()))

    # For those who run jobs. ``lease`` names the run: what a run that was taken back says is not heard.

    async def claim(self, limit: int) -> list[JobRecord]:
        """Up to ``limit`` jobs to run now, with their bodies, marked as running. Owners take turns; within
        one the oldest comes first. A job on its last attempt runs alone."""
        return await self._write(partial(job_table.claim, limit=limit, limits=self.limits, now=self.clock()))

    async def succeed(self, id: str, lease: int, outcome: JobOutcome) -> bool:
        """Keep the result and end the job, as one. False when it had ended or was taken back."""
        succeed = partial(job_table.succeed, id=id, lease=lease, outcome=outcome, now=self.clock())
        return await self._write(succeed, len(outcome.data))

    async def fail(self, id: str, lease: int, error: ServingError, *, expired: bool = False) -> bool:
        """As ``succeed``. expired: it took longer than it may."""
        return await self._write(
            partial(job_table.fail, id=id, lease=lease, error=error, now=self.clock(), expired=expired)
        )

    async def release(
        self, id: str, lease: int, error: ServingError, *, delay: float = 0.0, counted: bool = False
    ) -> bool:
        """Queue a running job again, for ``delay`` seconds out of reach. An attempt that is ``counted``
        fails with ``error`` when it was the last; one that is not never was."""
        now = self.clock()
        return await self._write(
            partial(
                job_table.release,
                id=id,
                lease=lease,
                error=error,
                limits=self.limits,
                now=now,
                not_before=now + delay,
                counted=counted,
            )
        )

    async def expire_queued(self) -> list[str]:
        """End what waits past its deadline; the ids."""
        return await self._write(partial(job_table.expire_queued, now=self.clock()))

    async def forget(self) -> None:
        """Drop finished jobs over the limits of age and size, the oldest first."""
        more = True
        while more:
            more = await self._write(partial(job_retention.forget, limits=self.limits, now=self.clock()))

    # For who delivers webhooks.

    async def take_owed(self, limit: int, delay: float) -> list[OwedCall]:
        """The calls to make now, the longest due first. Each is due again unless it is settled: after
        ``delay`` seconds the first time, and twice as many each further time."""
        return await self._write(partial(job_outbox.take_owed, limit=limit, now=self.clock(), delay=delay))

    async def settle(self, id: str) -> None:
        """The call was delivered, or given up."""
        await self._write(partial(job_outbox.settle, id=id))

    async def _write(self, operation: Callable[[sqlite3.Connection], T], size: int = 0) -> T:
        return await asyncio.wrap_future(self._writer.submit(operation, size))

    async def _read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise CapacityError("shutting_down", "this server is shutting down")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._ask, question)

    def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._idle.get()  # as many as there are threads
        try:
            connection.execute("BEGIN")  # one state of things for all of its statements
            return question(connection)
        except sqlite3.Error as error:
            raise refusal(error) from error
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._idle.put(connection)

    def _recover(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("BEGIN IMMEDIATE")
            job_table.recover(connection, self.limits, self.clock())
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            connection.close()
            raise self._file.unusable_because(error) from error
