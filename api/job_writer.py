"""The one thread that writes the job store, with group commit: what waits together shares one fsync.

It refuses to know what the operations do.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from core.errors import CapacityError, ServingError

log = logging.getLogger("batchmux.jobs")

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], Any]
Task = tuple[Operation, int, "Future[Any]"]

_MOST_TOGETHER = 256  # operations of one transaction
_LOG_BYTES = 4 * 2**20  # of the write-ahead log, about, before it is copied into the file: some ms of work
_OPERATION_BYTES = (
    8 * 4096
)  # what an operation adds to it besides bodies and results: pages of tables and indexes


class JobWriter:
    """Runs operations in order, each whole or not at all, and answers after the commit that holds it.

    An operation that raises changes nothing and fails alone. It may be run twice, when the first time was
    rolled back.

    commits: transactions so far.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.commits = 0
        self._db = connection
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._logged = 0
        self._gate = threading.Lock()  # nothing is queued behind the end
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="job-writer", daemon=True)
        self._thread.start()

    def submit(self, operation: Callable[[sqlite3.Connection], T], size: int = 0) -> "Future[T]":
        """What the operation returns, once it is durable; or what it raises, and ``CapacityError``
        ``storage_full`` or ``not_ready`` where the disk refuses. Cancelling drops one that has not begun.

        size: bytes of the body or result it writes.
        """
        future: Future[T] = Future()
        with self._gate:
            if not self._closed:
                self._tasks.put((operation, size, future))
                return future
        future.set_exception(CapacityError("shutting_down", "this server is shutting down"))
        return future

    def close(self) -> None:
        """Everything submitted before is still carried out."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._tasks.put(None)
        self._thread.join()
        self._db.close()

    def _run(self) -> None:
        while group := self._take():
            try:
                self._serve(group)
            except BaseException as error:
                log.critical("the job store's writer failed in a way nobody foresaw", exc_info=error)
                for _, _, future in group:
                    if not future.done():
                        future.set_exception(_broken())
            if self._logged >= _LOG_BYTES:
                self._copy_log()

    def _take(self) -> list[Task]:
        """Wait for work, then take all there is. Empty at the end."""
        first = self._tasks.get()
        if first is None:
            return []
        group = [first]
        while len(group) < _MOST_TOGETHER:
            try:
                task = self._tasks.get_nowait()
            except Empty:
                break
            if task is None:
                self._tasks.put(None)
                break
            group.append(task)
        return group

    def _serve(self, group: Sequence[Task]) -> None:
        live = [task for task in group if task[2].set_running_or_notify_cancel()]
        try:
            answers = self._transact([operation for operation, _, _ in live])
        except sqlite3.Error as error:
            # One may be at fault for all: a large result that does not fit, among small changes that do.
            log.warning("a commit of %d operations failed, each is tried alone: %s", len(live), error)
            self._copy_log()  # which makes room in it
            answers = [self._alone(operation) for operation, _, _ in live]
        for (_, size, future), answer in zip(live, answers, strict=True):
            self._logged += size + _OPERATION_BYTES
            if isinstance(answer, _Raised):
                future.set_exception(answer.error)
            else:
                future.set_result(answer)

    def _transact(self, operations: Sequence[Operation]) -> list[Any]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            answers = [self._carry_out(operation) for operation in operations]
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        self.commits += 1
        return answers

    def _carry_out(self, operation: Operation) -> Any:
        self._db.execute("SAVEPOINT one")
        try:
            answer = operation(self._db)
        except sqlite3.Error:
            raise
        except Exception as error:
            if not isinstance(error, ServingError):
                log.exception("an operation on the job store failed in a way nobody foresaw")
            self._db.execute("ROLLBACK TO one")
            answer = _Raised(error)
        self._db.execute("RELEASE one")
        return answer

    def _alone(self, operation: Operation) -> Any:
        try:
            return self._transact([operation])[0]
        except sqlite3.Error as error:
            return _Raised(refusal(error))

    def _copy_log(self) -> None:
        """While nobody waits for an answer; the log then starts over."""
        self._logged = 0
        try:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            log.warning("the job store's log cannot be copied into its file: %s", error)


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def refusal(error: sqlite3.Error) -> CapacityError:
    """SQLite's error in the callers' words."""
    log.error("the job store's disk refuses: %s", error)
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
        message = "the job store's disk is full; try again when finished jobs were cleared away"
        return CapacityError("storage_full", message)
    return _broken()


def _broken() -> CapacityError:
    return CapacityError("not_ready", "the job store does not work; the operator has to look at it")
