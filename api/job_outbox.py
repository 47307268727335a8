"""Webhooks that are owed, as SQL: each was written with the end of its job, and stays until it is settled."""

import sqlite3
from dataclasses import dataclass

from api.job_lookup import record
from api.job_record import JobRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class OwedCall:
    """``tries`` counts those that failed."""

    job: JobRecord
    tries: int


def owed(db: sqlite3.Connection, limit: int, now: float) -> list[OwedCall]:
    """The calls that are due, the longest due first."""
    due = db.execute(
        "SELECT seq, tries FROM outbox WHERE not_before <= ? ORDER BY not_before LIMIT ?", (now, limit)
    ).fetchall()
    return [OwedCall(job=record(db, "seq = ?", (seq,), with_result=True), tries=tries) for seq, tries in due]


def settle(db: sqlite3.Connection, id: str) -> None:
    """It was delivered, or given up."""
    db.execute("DELETE FROM outbox WHERE seq = (SELECT seq FROM job WHERE id = ?)", (id,))


def postpone(db: sqlite3.Connection, id: str, not_before: float) -> None:
    """It failed once more."""
    db.execute(
        "UPDATE outbox SET tries = tries + 1, not_before = ? WHERE seq = (SELECT seq FROM job WHERE id = ?)",
        (not_before, id),
    )
