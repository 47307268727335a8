"""Jobs as they are asked for, as SQL; every question of a caller names the owner.

It refuses to change anything; see ``api.job_table``.
"""

import sqlite3
from collections.abc import Collection
from typing import Any

from api.job_record import JobOutcome, JobPage, JobRecord, JobState
from core.errors import RequestError

_FIELDS = (
    "id, owner, dialect, state, attempts, lease, created, started, finished, deadline, expires,"
    " execution_timeout, webhook, error_code, error_message"
)
_LATER_THAN_ALL = 1e15


def get(db: sqlite3.Connection, owner: str, id: str) -> JobRecord:
    """With its result. Raises ``RequestError``: ``expired`` where it was kept long enough, else
    ``job_not_found``, also for another owner's."""
    if db.execute("SELECT 1 FROM job WHERE id = ? AND owner = ?", (id, owner)).fetchone():
        return record(db, "id = ?", (id,), with_result=True)
    if db.execute("SELECT 1 FROM gone WHERE id = ? AND owner = ?", (id, owner)).fetchone():
        raise RequestError("expired", "the job is done and no longer kept; ask sooner next time")
    raise RequestError(
        "job_not_found", "no such job; check the id, and that the key is the one it was sent with"
    )


def page(
    db: sqlite3.Connection, owner: str, after: str | None, limit: int, states: Collection[JobState]
) -> JobPage:
    """An owner's jobs, the newest first, without results; no ``states`` means all.

    Raises ``RequestError`` ``invalid_parameter`` when ``after`` is none of ours.
    """
    where, values = "owner = ?", [owner]
    if states:
        where += f" AND state IN ({', '.join('?' * len(states))})"
        values += list(states)
    found: list[Any] = db.execute(
        f"SELECT {_FIELDS} FROM job WHERE {where} AND (created, id) < (?, ?)"
        " ORDER BY created DESC, id DESC LIMIT ?",
        (*values, *_place(after), limit + 1),
    ).fetchall()
    jobs = tuple(_from_row(row) for row in found[:limit])
    return JobPage(jobs=jobs, after=f"{jobs[-1].created!r}~{jobs[-1].id}" if len(found) > limit else None)


def _place(after: str | None) -> tuple[float, str]:
    if after is None:
        return _LATER_THAN_ALL, ""
    created, _, id = after.partition("~")
    try:
        return float(created), id
    except ValueError:
        message = "after is not the mark of a page; take it from the page before"
        raise RequestError("invalid_parameter", message, param="after") from None


def counts(db: sqlite3.Connection, owner: str | None = None) -> dict[JobState, int]:
    """Jobs that are kept, by state."""
    found = db.execute(
        "SELECT state, count(*) FROM job WHERE ?1 IS NULL OR owner = ?1 GROUP BY state", (owner,)
    ).fetchall()
    return dict.fromkeys(JobState, 0) | {JobState(state): number for state, number in found}


def retried(db: sqlite3.Connection) -> int:
    """Jobs that are kept and were begun more than once."""
    (number,) = db.execute("SELECT count(*) FROM job WHERE lease > 1").fetchone()
    return int(number)


def record(
    db: sqlite3.Connection,
    where: str,
    values: tuple[Any, ...],
    *,
    body: bytes = b"",
    with_result: bool = False,
) -> JobRecord:
    row = db.execute(f"SELECT seq, {_FIELDS} FROM job WHERE {where}", values).fetchone()
    outcome = None
    if with_result:
        found = db.execute("SELECT media_type, data FROM result WHERE seq = ?", row[:1]).fetchone()
        outcome = None if found is None else JobOutcome(media_type=found[0], data=found[1])
    return _from_row(row[1:], body, outcome)


def _from_row(row: Any, body: bytes = b"", outcome: JobOutcome | None = None) -> JobRecord:
    fields = dict(zip(_FIELDS.replace(",", " ").split(), row, strict=True))
    fields["state"] = JobState(fields["state"])
    return JobRecord(**fields, body=body, outcome=outcome)
