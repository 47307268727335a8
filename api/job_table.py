"""What happens to jobs, as SQL: each function is one step inside a transaction that the caller commits.

Time is an argument. It refuses to know threads, files and commits.
"""

import math
import sqlite3
import uuid
from typing import Any

from api.job_lookup import get, record
from api.job_record import RETRYABLE, JobOutcome, JobRecord, JobState, NewJob, StoreLimits, sources_of
from core.errors import CapacityError, RequestError, ServingError

_LIVE = "state IN ('queued', 'running')"

# Owners take turns: a job's turn is its place among its owner's, with those that run counted, and among
# equals it is the owner's who has waited longest for one. So a flood under one key does not hold up another's
# single job. Within an owner the oldest comes first.
_NEXT = f"""
    WITH busy AS (
        SELECT owner, count(*) AS jobs FROM job WHERE state = 'running' AND {_LIVE} GROUP BY owner
    ), waiting AS (
        SELECT seq, attempts, owner, row_number() OVER (PARTITION BY owner ORDER BY seq) AS place
        FROM job
        WHERE state = 'queued' AND {_LIVE} AND not_before <= :now AND (deadline IS NULL OR deadline > :now)
    )
    SELECT seq, attempts, owner FROM waiting LEFT JOIN busy USING (owner) LEFT JOIN turn USING (owner)
    ORDER BY place + coalesce(busy.jobs, 0), coalesce(turn.at, 0), seq LIMIT :limit
"""


def create(
    db: sqlite3.Connection, new: NewJob, limits: StoreLimits, now: float, *, free_bytes: float = math.inf
) -> tuple[JobRecord, bool]:
    """The job, and whether it is new. One with the same idempotency key and body is the same job.

    Raises ``RequestError`` ``conflict`` where the body is another, and ``CapacityError``: ``queue_full``, and
    ``storage_full`` where the disk has only ``free_bytes`` left.
    """
    if new.idempotency_key is not None:
        row = db.execute(
            "SELECT id, body_hash FROM job WHERE owner = ? AND idempotency_key = ?",
            (new.owner, new.idempotency_key),
        ).fetchone()
        if row is not None:
            if row[1] != new.body_hash:
                message = "this Idempotency-Key was used for another request; choose a new one"
                raise RequestError("conflict", message)
            return get(db, new.owner, row[0]), False
    _check_room(db, len(new.body), limits)
    if free_bytes < limits.min_free_bytes + len(new.body):
        text = "the job store's disk is almost full; try again when finished jobs were cleared away"
        raise CapacityError("storage_full", text)
    id = new.prefix + str(uuid.uuid4())
    deadline = None if new.ttl is None else now + new.ttl
    keep = limits.keep_seconds if new.keep is None else new.keep
    cursor = db.execute(
        "INSERT INTO job (id, owner, dialect, state, created, not_before, deadline, keep, execution_timeout,"
        " webhook, idempotency_key, body_hash, size) VALUES (?, ?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(id, new.owner, new.dialect, now, now, deadline, keep, new.execution_timeout, new.webhook),
            *(new.idempotency_key, new.body_hash, len(new.body)),
        ),
    )
    db.execute("INSERT INTO body VALUES (?, ?)", (cursor.lastrowid, new.body))
    return get(db, new.owner, id), True


def _check_room(db: sqlite3.Connection, size: int, limits: StoreLimits) -> None:
    jobs, held = db.execute(f"SELECT count(*), coalesce(sum(size), 0) FROM job WHERE {_LIVE}").fetchone()
    if jobs >= limits.max_live:
        text = f"{jobs} jobs wait already, and {limits.max_live} may; try again when some are done"
        raise CapacityError("queue_full", text)
    if jobs and held + size > limits.max_live_bytes:
        text = (
            f"waiting jobs hold {held} of {limits.max_live_bytes} bytes already; try again when some are done"
        )
        raise CapacityError("queue_full", text)


def claim(db: sqlite3.Connection, limit: int, limits: StoreLimits, now: float) -> list[JobRecord]:
    """Up to ``limit`` jobs to run now, marked as running.

    A job on its last attempt runs alone: whichever job it is that ends the process must not take its
    neighbours along each time, or they would all be out of attempts.
    """
    last = limits.max_attempts - 1
    running, suspects = db.execute(
        f"SELECT count(*), coalesce(sum(attempts > ?), 0) FROM job WHERE state = 'running' AND {_LIVE}",
        (last,),
    ).fetchone()
    claimed: list[JobRecord] = []
    if suspects and last:
        return claimed
    for seq, attempts, owner in db.execute(_NEXT, {"now": now, "limit": limit}).fetchall():
        suspect = attempts >= last > 0
        if suspect and (running or claimed):
            break  # the others end first; nothing new overtakes it
        _advance(db, seq, JobState.RUNNING, "attempts = attempts + 1, lease = lease + 1, started = ?", (now,))
        db.execute("INSERT OR REPLACE INTO turn VALUES (?, ?)", (owner, now))
        (body,) = db.execute("SELECT data FROM body WHERE seq = ?", (seq,)).fetchone()
        claimed.append(record(db, "seq = ?", (seq,), body=body))
        if suspect:
            break
    return claimed


def succeed(db: sqlite3.Connection, id: str, lease: int, outcome: JobOutcome, now: float) -> bool:
    """Whether this was the run that counts, and the job was not ended before. The result is kept with it."""
    seq = _leased(db, id, lease)
    if seq is None:
        return False
    _end(db, seq, JobState.SUCCEEDED, now)
    db.execute("INSERT INTO result VALUES (?, ?, ?)", (seq, outcome.media_type, outcome.data))
    db.execute("UPDATE job SET size = ? WHERE seq = ?", (len(outcome.data), seq))
    return True


def fail(
    db: sqlite3.Connection, id: str, lease: int, error: ServingError, now: float, *, expired: bool = False
) -> bool:
    """As ``succeed``, for a run that failed, or took longer than it may."""
    seq = _leased(db, id, lease)
    if seq is not None:
        _end(db, seq, JobState.EXPIRED if expired else JobState.FAILED, now, error.code, error.message)
    return seq is not None


def release(
    db: sqlite3.Connection,
    id: str,
    lease: int,
    error: ServingError,
    limits: StoreLimits,
    now: float,
    *,
    not_before: float,
    counted: bool,
) -> bool:
    """Queue a running job again. One whose attempt is ``counted`` fails when it was the last."""
    seq = _leased(db, id, lease)
    if seq is None:
        return False
    (attempts,) = db.execute("SELECT attempts FROM job WHERE seq = ?", (seq,)).fetchone()
    if counted and attempts >= limits.max_attempts:
        _end(db, seq, JobState.FAILED, now, error.code, error.message)
    else:
        _advance(
            db,
            seq,
            JobState.QUEUED,
            "attempts = attempts - ?, not_before = ?",
            (int(not counted), not_before),
        )
    return True


def cancel(db: sqlite3.Connection, owner: str, id: str, now: float) -> JobRecord:
    """The job after it: one that had ended stays as it was. Raises as ``get`` does."""
    if not get(db, owner, id).state.terminal:
        (seq,) = db.execute("SELECT seq FROM job WHERE id = ?", (id,)).fetchone()
        _end(db, seq, JobState.CANCELLED, now, "cancelled", "the job was cancelled")
    return get(db, owner, id)


def retry(db: sqlite3.Connection, owner: str, id: str, limits: StoreLimits, now: float) -> JobRecord:
    """Queue a job again that failed or took too long, under its id and with all of its attempts and time.

    Raises as ``get`` does, ``RequestError`` ``conflict`` for any other, and ``CapacityError`` ``queue_full``.
    """
    state = get(db, owner, id).state
    if state not in RETRYABLE:
        message = f"the job is {state}; only one that failed or took too long can be retried"
        raise RequestError("conflict", message)
    seq, size = db.execute("SELECT seq, size FROM job WHERE id = ?", (id,)).fetchone()
    _check_room(db, size, limits)
    db.execute(
        "UPDATE job SET state = 'queued', attempts = 0, not_before = ?1,"
        " deadline = ?1 + (deadline - created), started = NULL, finished = NULL, expires = NULL,"
        " error_code = NULL, error_message = NULL WHERE seq = ?2",
        (now, seq),
    )
    db.execute("DELETE FROM outbox WHERE seq = ?", (seq,))  # what it would tell is no longer so
    return get(db, owner, id)


def purge_queue(db: sqlite3.Connection, owner: str, now: float) -> list[str]:
    """Cancel what an owner has waiting; the ids."""
    waiting = db.execute(
        f"SELECT seq, id FROM job WHERE owner = ? AND state = 'queued' AND {_LIVE}", (owner,)
    ).fetchall()
    for seq, _ in waiting:
        _end(db, seq, JobState.CANCELLED, now, "cancelled", "the queue was purged")
    return [id for _, id in waiting]


def expire_queued(db: sqlite3.Connection, now: float) -> list[str]:
    """End what waits past its deadline; the ids. Those that run are watched by who runs them."""
    due = db.execute(
        f"SELECT seq, id FROM job WHERE state = 'queued' AND {_LIVE} AND deadline <= ?", (now,)
    ).fetchall()
    for seq, _ in due:
        _end(db, seq, JobState.EXPIRED, now, "deadline_exceeded", "the job was not begun within its time")
    return [id for _, id in due]


def recover(db: sqlite3.Connection, limits: StoreLimits, now: float) -> None:
    """Nothing runs when a process starts: what the last one left behind is queued again, or given up."""
    db.execute(
        f"UPDATE job SET state = 'queued' WHERE state = 'running' AND {_LIVE} AND attempts < ?",
        (limits.max_attempts,),
    )
    left = db.execute(f"SELECT seq FROM job WHERE state = 'running' AND {_LIVE}").fetchall()
    message = f"the server ended during each of {limits.max_attempts} attempts; the job is not tried again"
    for (seq,) in left:
        _end(db, seq, JobState.FAILED, now, "pipeline_error", message)


def _leased(db: sqlite3.Connection, id: str, lease: int) -> int | None:
    """The running job, unless this run was taken from its runner in the meantime."""
    row = db.execute(
        "SELECT seq FROM job WHERE id = ? AND lease = ? AND state = 'running'", (id, lease)
    ).fetchone()
    return None if row is None else int(row[0])


def _end(
    db: sqlite3.Connection,
    seq: int,
    to: JobState,
    now: float,
    code: str | None = None,
    message: str | None = None,
) -> None:
    """The one way to a terminal state: the keeping begins, the webhook is owed, and the body goes unless
    it may be tried again."""
    ending = "finished = ?, expires = ? + keep, error_code = ?, error_message = ?"
    _advance(db, seq, to, ending, (now, now, code, message))
    if to not in RETRYABLE:
        db.execute("UPDATE job SET size = 0 WHERE seq = ?", (seq,))
        db.execute("DELETE FROM body WHERE seq = ?", (seq,))
    db.execute(
        "INSERT INTO outbox SELECT seq, 0, ? FROM job WHERE seq = ? AND webhook IS NOT NULL", (now, seq)
    )


def _advance(db: sqlite3.Connection, seq: int, to: JobState, changes: str, values: tuple[Any, ...]) -> None:
    starts = sources_of(to)
    done = db.execute(
        f"UPDATE job SET state = ?, {changes} WHERE seq = ? AND state IN ({', '.join('?' * len(starts))})",
        (to, *values, seq, *starts),
    )
    if done.rowcount != 1:
        raise ValueError(f"a job cannot go to {to}")
