"""How long finished jobs are kept: by age, and by size with the oldest going first.

Live jobs never go, nor do those whose end is still to be told: a webhook is written from its job. The sender
gives each up after a while, so they are few, and no result of anybody else's goes for them. A forgotten job
leaves its id behind for a while, so that asking for it is told from asking for nothing.
"""

import sqlite3

from api.job_record import StoreLimits

_ROW_BYTES = 1024  # what a job costs besides its result: a flood of failures must be forgotten too
_AT_ONCE = 500  # rows of one transaction: others wait for it
_TOLD = "NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.seq = job.seq)"


def forget(db: sqlite3.Connection, limits: StoreLimits, now: float) -> bool:
    """Drop what is over the limits; whether more is left to drop than one transaction should."""
    old = db.execute(
        f"SELECT seq FROM job WHERE expires <= ? AND {_TOLD} LIMIT ?", (now, _AT_ONCE)
    ).fetchall()
    _drop(db, [seq for (seq,) in old], limits, now)
    heavy = _over_weight(db, limits)
    _drop(db, heavy, limits, now)
    db.execute("DELETE FROM gone WHERE id IN (SELECT id FROM gone WHERE until <= ? LIMIT ?)", (now, _AT_ONCE))
    return _AT_ONCE in (len(old), len(heavy))


def drop(db: sqlite3.Connection, owner: str, id: str, limits: StoreLimits, now: float) -> None:
    """Forget one job at its owner's wish, unless it is live; its webhook, where one is owed, goes with it."""
    found = db.execute(
        "SELECT seq FROM job WHERE id = ? AND owner = ? AND finished IS NOT NULL", (id, owner)
    ).fetchall()
    _drop(db, [seq for (seq,) in found], limits, now)


def _over_weight(db: sqlite3.Connection, limits: StoreLimits) -> list[int]:
    jobs, size = db.execute(
        f"SELECT count(*), coalesce(sum(size), 0) FROM job WHERE finished IS NOT NULL AND {_TOLD}"
    ).fetchone()
    excess = size + jobs * _ROW_BYTES - limits.keep_bytes
    dropped: list[int] = []
    oldest = f"SELECT seq, size FROM job WHERE finished IS NOT NULL AND {_TOLD} ORDER BY finished LIMIT ?"
    for seq, size in db.execute(oldest, (_AT_ONCE,)):
        if excess <= 0:
            break
        dropped.append(seq)
        excess -= size + _ROW_BYTES
    return dropped


def _drop(db: sqlite3.Connection, jobs: list[int], limits: StoreLimits, now: float) -> None:
    rows = [(now + limits.gone_seconds, seq) for seq in jobs]
    db.executemany("INSERT INTO gone SELECT id, owner, ? FROM job WHERE seq = ?", rows)
    db.executemany("DELETE FROM job WHERE seq = ?", [(seq,) for seq in jobs])
