"""Webhooks that are owed, as SQL: each was written with the end of its job, and stays until it is settled."""

import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class OwedCall:
    """``tries`` counts this one."""

    owner: str
    id: str
    tries: int


def take_owed(db: sqlite3.Connection, limit: int, now: float, delay: float) -> list[OwedCall]:
    """The calls to make now, the longest due first. Each is due again after a while that doubles with every
    try, unless it was settled by then: nothing else is needed when it fails, or when the process ends."""
    due = db.execute(
        "SELECT seq, owner, id, tries FROM outbox JOIN job USING (seq) WHERE outbox.not_before <= ?"
        " ORDER BY outbox.not_before LIMIT ?",
        (now, limit),
    ).fetchall()
    for seq, _, _, tries in due:
        again = now + delay * 2.0**tries
        db.execute("UPDATE outbox SET tries = tries + 1, not_before = ? WHERE seq = ?", (again, seq))
    return [OwedCall(owner=owner, id=id, tries=tries + 1) for _, owner, id, tries in due]


def settle(db: sqlite3.Connection, id: str) -> None:
    """It was delivered, or given up."""
    db.execute("DELETE FROM outbox WHERE seq = (SELECT seq FROM job WHERE id = ?)", (id,))
