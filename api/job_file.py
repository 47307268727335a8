"""The job store's file: who may open it, its settings, and the steps by which its schema came to be.

It refuses to know what happens to jobs; see ``api.job_table``.
"""

import fcntl
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

APPLICATION_ID = 0x624A6F62  # "bJob": SQLite files of others are never written to
_NAME = "jobs.sqlite3"
_LOCK = "jobs.lock"
_BUSY_SECONDS = 5.0  # for a person who looks into the file with another program
_KEPT_LOG_BYTES = 64 * 2**20  # a write-ahead log that once grew larger is cut to this

# Each entry leads from the version of its index to the next; what has been released is never edited.
MIGRATIONS: Sequence[Sequence[str]] = (
    (
        """CREATE TABLE job (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            dialect TEXT NOT NULL,
            state TEXT NOT NULL,
            attempts INTEGER NOT NULL DEFAULT 0,
            lease INTEGER NOT NULL DEFAULT 0,
            created REAL NOT NULL,
            not_before REAL NOT NULL,
            started REAL,
            finished REAL,
            deadline REAL,
            expires REAL,
            keep REAL NOT NULL,
            execution_timeout REAL,
            webhook TEXT,
            idempotency_key TEXT,
            body_hash BLOB NOT NULL,
            size INTEGER NOT NULL,
            error_code TEXT,
            error_message TEXT
        )""",
        # Bodies and results lie apart, so that a walk over the jobs reads none of their pages.
        "CREATE TABLE body (seq INTEGER PRIMARY KEY REFERENCES job ON DELETE CASCADE, data BLOB NOT NULL)",
        """CREATE TABLE result (
            seq INTEGER PRIMARY KEY REFERENCES job ON DELETE CASCADE,
            media_type TEXT NOT NULL,
            data BLOB NOT NULL
        )""",
        """CREATE TABLE outbox (
            seq INTEGER PRIMARY KEY REFERENCES job ON DELETE CASCADE,
            tries INTEGER NOT NULL,
            not_before REAL NOT NULL
        )""",
        "CREATE TABLE gone (id TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL) WITHOUT ROWID",
        """CREATE UNIQUE INDEX job_idempotency ON job (owner, idempotency_key)
            WHERE idempotency_key IS NOT NULL""",
        "CREATE INDEX job_page ON job (owner, created, id)",
        """CREATE INDEX job_live ON job (state, owner, seq, not_before, deadline, attempts, size)
            WHERE state IN ('queued', 'running')""",
        "CREATE INDEX job_finished ON job (finished, size) WHERE finished IS NOT NULL",
        "CREATE INDEX job_expires ON job (expires) WHERE expires IS NOT NULL",
        "CREATE INDEX outbox_due ON outbox (not_before)",
        "CREATE INDEX gone_until ON gone (until)",
    ),
)

# When each owner was last given a run. Of this process alone: it only says who is next among equals.
TURNS = "CREATE TEMP TABLE turn (owner TEXT PRIMARY KEY, at REAL NOT NULL)"


class UnusableStore(Exception):
    """The store cannot be opened; the text says what to do about it. It ends the start-up."""


class JobFile:
    """A folder's jobs, held by one process until ``close`` or its end, however that comes.

    Raises ``UnusableStore``.
    """

    migrations: Sequence[Sequence[str]] = MIGRATIONS

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / _NAME
        self._lock = self._hold()

    def connect(self, *, reader: bool = False) -> sqlite3.Connection:
        """A connection for one thread at a time. Transactions are begun and ended by hand."""
        try:
            connection = sqlite3.connect(
                self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self.unusable_because(error) from error
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            if reader:
                connection.execute("PRAGMA query_only = ON")
            else:
                self._prepare(connection)
                connection.execute("PRAGMA temp_store = MEMORY")
                connection.execute(TURNS)
        except sqlite3.Error as error:
            connection.close()
            raise self.unusable_because(error) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def free_bytes(self) -> int:
        """What the disk has left for this user."""
        disk = os.statvfs(self._folder)
        return disk.f_bavail * disk.f_frsize

    def unusable(self, reason: str) -> UnusableStore:
        return UnusableStore(f"the job store in DATA_DIR={self._folder} {reason}")

    def close(self) -> None:
        os.close(self._lock)

    def _hold(self) -> int:
        """Create the file for this user alone, and keep other processes out: they would take each other's
        running jobs for those of a process that died."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._cannot_write(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # SQLite gives its log the mode of the file beside it.
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.fchmod(file, 0o600)
            finally:
                os.close(file)
        except BlockingIOError as error:
            os.close(lock)
            reason = "is in use by another process; give each its own DATA_DIR, or stop the other one"
            raise self.unusable(reason) from error
        except OSError as error:
            os.close(lock)
            raise self._cannot_write(error) from error
        return lock

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION_ID and (application or version or tables):
            raise self.unusable(f"is another program's: move its {_NAME} away, or choose another DATA_DIR")
        if version > len(self.migrations):
            raise self.unusable(
                f"has version {version}, and this program knows versions up to {len(self.migrations)}: "
                f"run the newer program that wrote it, or choose another DATA_DIR"
            )
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise self.unusable("lies on a file system without shared memory; choose a local DATA_DIR")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # the writer chooses a moment when nobody waits
        connection.execute(f"PRAGMA journal_size_limit = {_KEPT_LOG_BYTES}")
        for number, statements in enumerate(self.migrations[version:], version + 1):
            connection.execute("BEGIN IMMEDIATE")
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        (verdict,) = connection.execute(
            "PRAGMA quick_check(job)"
        ).fetchone()  # bodies and results are not read
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)

    def unusable_because(self, error: sqlite3.Error) -> UnusableStore:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (0, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):  # 0: found by our own check
            reason = f"is damaged ({error}): restore {_NAME} from a copy, or move it away to start empty"
        elif code == sqlite3.SQLITE_FULL:
            reason = "is on a full disk; free some space"
        else:
            reason = f"cannot be opened ({error}); check the disk and the folder's permissions"
        return self.unusable(reason)

    def _cannot_write(self, error: OSError) -> UnusableStore:
        return self.unusable(f"cannot be written ({error.strerror}); choose a folder this user may write to")
