"""What happens to jobs, step by step, at times that the tests choose."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.job_lookup import counts, get, page
from api.job_outbox import settle, take_owed
from api.job_record import JobOutcome, JobRecord, JobState, StoreLimits
from api.job_retention import forget
from api.job_table import (
    cancel,
    claim,
    create,
    expire_queued,
    fail,
    purge_queue,
    recover,
    release,
    retry,
    succeed,
)
from core.errors import CapacityError, ExecutionError, RequestError, ServingError
from tests.api.jobs import START, new_job, table

LIMITS = StoreLimits()
FAULT = ExecutionError("pipeline_error", "it broke")
RESULT = JobOutcome(data=b"{}")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with table(tmp_path) as tables:
        yield tables


def add(db: sqlite3.Connection, number: int = 1, **fields: Any) -> list[str]:
    return [create(db, new_job(**fields), LIMITS, START + at)[0].id for at in range(number)]


def begin(db: sqlite3.Connection, limit: int = 1, now: float = START + 100) -> list[JobRecord]:
    return claim(db, limit, LIMITS, now)


def back(db: sqlite3.Connection, job: JobRecord, *, counted: bool, not_before: float = START) -> None:
    assert release(db, job.id, job.lease, FAULT, LIMITS, START + 100, not_before=not_before, counted=counted)


def code_of(db: sqlite3.Connection, id: str, owner: str = "ann") -> str:
    with pytest.raises(ServingError) as caught:
        get(db, owner, id)
    return caught.value.code


def test_a_job_goes_its_way(db: sqlite3.Connection) -> None:
    """Queued, claimed with its body, done with its result; each with its time."""
    (id,) = add(db, ttl=500.0, execution_timeout=9.0, webhook="https://a.example/", prefix="sync-")
    assert id.startswith("sync-")
    assert len(id) > 30  # nobody guesses it
    waiting = get(db, "ann", id)
    assert (waiting.state, waiting.created, waiting.deadline) == (JobState.QUEUED, START, START + 500)
    (job,) = begin(db)
    assert (job.id, job.body, job.attempts, job.started) == (id, b"body", 1, START + 100)
    assert (job.execution_timeout, job.webhook) == (9.0, "https://a.example/")
    assert succeed(db, id, job.lease, RESULT, START + 110)
    done = get(db, "ann", id)
    assert (done.state, done.finished, done.outcome) == (JobState.SUCCEEDED, START + 110, RESULT)
    assert done.expires == START + 110 + LIMITS.keep_seconds


def test_an_end_takes_the_body_away(db: sqlite3.Connection) -> None:
    """Pictures that nobody will read again would fill the disk; only what failed can be tried again."""
    ids = add(db, 3)
    cancel(db, "ann", ids[0], START)
    jobs = begin(db, 2)
    fail(db, jobs[0].id, jobs[0].lease, FAULT, START)
    succeed(db, jobs[1].id, jobs[1].lease, RESULT, START)
    held = db.execute("SELECT id, size FROM body JOIN job USING (seq)").fetchall()
    assert held == [(jobs[0].id, len(b"body"))], "what is kept counts against the store's bytes"
    assert db.execute("SELECT sum(size) FROM job").fetchone() == (len(b"body") + len(RESULT.data),)


@pytest.mark.parametrize("expired", [False, True])
def test_what_failed_can_be_queued_again(db: sqlite3.Connection, expired: bool) -> None:
    """Under its id, with all of its time and attempts; the call that was owed would tell what is no more."""
    (id,) = add(db, ttl=500.0, webhook="https://a.example/")
    (job,) = begin(db)
    fail(db, id, job.lease, FAULT, START + 110, expired=expired)
    again = retry(db, "ann", id, LIMITS, START + 200)
    assert (again.state, again.attempts, again.deadline) == (JobState.QUEUED, 0, START + 700)
    assert (again.finished, again.error_code) == (None, None)
    assert take_owed(db, 9, START + 999, 1) == []
    (run,) = begin(db, now=START + 201)
    assert (run.body, run.lease, run.attempts) == (b"body", 2, 1)
    assert succeed(db, id, run.lease, RESULT, START + 202)
    assert len(take_owed(db, 9, START + 999, 1)) == 1


def test_nothing_else_can_be_queued_again(db: sqlite3.Connection) -> None:
    """A job that succeeded has its one answer, one that was cancelled is not wanted."""
    waiting, done, unwanted = add(db, 3)
    cancel(db, "ann", unwanted, START)
    with pytest.raises(RequestError, match="can be retried"):
        retry(db, "ann", waiting, LIMITS, START)
    jobs = begin(db, 2)
    succeed(db, done, jobs[1].lease, RESULT, START)
    for id in (waiting, done, unwanted):
        with pytest.raises(RequestError, match="can be retried"):
            retry(db, "ann", id, LIMITS, START)
    with pytest.raises(RequestError, match="no such job"):
        retry(db, "bob", done, LIMITS, START)


def test_a_second_end_changes_nothing(db: sqlite3.Connection) -> None:
    """Cancel races completion: the first to be committed decides."""
    add(db, 2)
    one, two = begin(db, 2)
    assert succeed(db, one.id, one.lease, RESULT, START)
    assert not succeed(db, one.id, one.lease, JobOutcome(data=b"other"), START)
    assert not fail(db, one.id, one.lease, FAULT, START)
    assert cancel(db, "ann", one.id, START).state is JobState.SUCCEEDED
    assert cancel(db, "ann", two.id, START).state is JobState.CANCELLED
    assert not succeed(db, two.id, two.lease, RESULT, START)
    assert get(db, "ann", one.id).outcome == RESULT


def test_a_run_that_was_taken_back_is_not_heard(db: sqlite3.Connection) -> None:
    """Its late result would end the run that has begun since; the attempts alone cannot tell the two."""
    add(db)
    (first,) = begin(db)
    back(db, first, counted=False)
    (second,) = begin(db)
    assert second.attempts == first.attempts
    assert not succeed(db, first.id, first.lease, RESULT, START)
    assert succeed(db, second.id, second.lease, RESULT, START)


def test_the_same_idempotency_key_and_body_is_the_same_job(db: sqlite3.Connection) -> None:
    """Whatever has become of it, and even when the store is full."""
    job, fresh = create(db, new_job(idempotency_key="k"), StoreLimits(max_live=1), START)
    assert fresh
    assert create(db, new_job(idempotency_key="k"), StoreLimits(max_live=1), START) == (job, False)
    cancel(db, "ann", job.id, START)
    again, fresh = create(db, new_job(idempotency_key="k"), StoreLimits(max_live=1), START)
    assert (again.id, again.state, fresh) == (job.id, JobState.CANCELLED, False)


@pytest.mark.parametrize("other", [{"body": b"other"}, {"dialect": "other"}])
def test_an_idempotency_key_is_not_used_twice(other: dict[str, Any], db: sqlite3.Connection) -> None:
    """One of two different requests would get the other's answer."""
    add(db, idempotency_key="k")
    with pytest.raises(RequestError) as caught:
        add(db, idempotency_key="k", **other)
    assert caught.value.code == "conflict"
    add(db, idempotency_key="k", owner="bob", **other)  # each owner has keys of its own


def test_an_owner_sees_nobody_elses_jobs(db: sqlite3.Connection) -> None:
    """Not even that they are there: the answer is that for an id that never was."""
    (id,) = add(db)
    assert code_of(db, id, "bob") == code_of(db, "absent") == "job_not_found"
    with pytest.raises(RequestError, match="no such job"):
        cancel(db, "bob", id, START)
    assert purge_queue(db, "bob", START) == []
    assert page(db, "bob", None, 10, ()).jobs == ()
    assert sum(counts(db, "bob").values()) == 0
    assert get(db, "ann", id).state is JobState.QUEUED


def test_jobs_and_bytes_are_bounded(db: sqlite3.Connection) -> None:
    """Finished jobs do not count; a body over the whole bound still fits alone."""
    limits = StoreLimits(max_live=2, max_live_bytes=100)
    big, _ = create(db, new_job(bytes(200)), limits, START)
    with pytest.raises(CapacityError, match="200 of 100 bytes") as caught:
        create(db, new_job(b"x"), limits, START)
    assert caught.value.code == "queue_full"
    cancel(db, "ann", big.id, START)
    for _ in range(2):
        create(db, new_job(b"x"), limits, START)
    with pytest.raises(CapacityError, match="2 jobs wait already, and 2 may"):
        create(db, new_job(b"x"), limits, START)


def test_owners_take_turns_and_each_ones_oldest_goes_first(db: sqlite3.Connection) -> None:
    """A flood under one key holds nobody else's job up for more than a turn."""
    flood = add(db, 4)
    lone = add(db, 2, owner="bob")
    assert [job.id for job in begin(db, 2)] == [flood[0], lone[0]]
    assert [job.id for job in begin(db, 1)] == [flood[1]]
    assert [job.id for job in begin(db, 9)] == [lone[1], flood[2], flood[3]]
    assert begin(db) == []


def test_a_released_job_waits_and_keeps_its_place(db: sqlite3.Connection) -> None:
    """A full queue is no fault of the job: it costs no attempt, however often."""
    old, young = add(db, 2)
    for _ in range(5):
        (job,) = begin(db)
        assert (job.id, job.attempts) == (old, 1)
        back(db, job, counted=False, not_before=START + 200)
        assert begin(db, 1, now=START + 199)[0].id == young
        back(db, get(db, "ann", young), counted=False)
        db.execute("UPDATE job SET not_before = 0")


def test_the_third_attempt_is_the_last(db: sqlite3.Connection) -> None:
    """A failure that may mend itself is tried again, with the reason told in the end."""
    (id,) = add(db)
    for attempt in (1, 2, 3):
        (job,) = begin(db)
        assert job.attempts == attempt
        back(db, job, counted=True)
    failed = get(db, "ann", id)
    assert (failed.state, failed.error_code, failed.error_message) == (
        JobState.FAILED,
        "pipeline_error",
        "it broke",
    )


def test_a_start_queues_what_was_running_or_gives_it_up(db: sqlite3.Connection) -> None:
    """The process that ran it is gone. Three deaths around one job are enough."""
    (id,) = add(db)
    for _ in range(3):
        assert get(db, "ann", id).state is JobState.QUEUED
        assert len(begin(db)) == 1
        recover(db, LIMITS, START)
    failed = get(db, "ann", id)
    assert (failed.state, failed.attempts) == (JobState.FAILED, 3)
    assert "each of 3 attempts" in (failed.error_message or "")


def test_a_last_attempt_is_made_alone(db: sqlite3.Connection) -> None:
    """If one job kills the process, those that ran beside it must not run out of attempts with it."""
    poison, *others = add(db, 4)
    for _ in range(2):
        assert len(begin(db, 2)) == 2
        recover(db, LIMITS, START)
    assert [job.id for job in begin(db, 4)] == [poison]
    assert begin(db, 4) == []
    recover(db, LIMITS, START)
    assert get(db, "ann", poison).state is JobState.FAILED
    (neighbour,) = begin(db, 4)
    assert neighbour.id == others[0]
    succeed(db, neighbour.id, neighbour.lease, RESULT, START)
    assert [job.id for job in begin(db, 4)] == others[1:]


def test_a_last_attempt_is_not_overtaken_for_ever(db: sqlite3.Connection) -> None:
    """Others run already; nothing new is begun before it had its turn."""
    suspect, young, *_ = add(db, 3)
    for _ in range(2):
        (job,) = begin(db)
        back(db, job, counted=True, not_before=START + 150)
        db.execute("UPDATE job SET not_before = 0 WHERE attempts < 2")
    (running,) = begin(db)
    assert running.id == young
    assert begin(db, 2, now=START + 150) == []
    succeed(db, running.id, running.lease, RESULT, START)
    assert [job.id for job in begin(db, 2, now=START + 150)] == [suspect]


def test_what_waits_past_its_deadline_expires_unrun(db: sqlite3.Connection) -> None:
    """Nobody wants it any more."""
    late, patient = add(db, ttl=10.0) + add(db)
    assert [job.id for job in begin(db, 2, now=START + 10)] == [patient]
    assert expire_queued(db, START + 9.9) == []
    assert expire_queued(db, START + 10) == [late]
    expired = get(db, "ann", late)
    assert (expired.state, expired.error_code) == (JobState.EXPIRED, "deadline_exceeded")


def test_a_purge_spares_what_runs(db: sqlite3.Connection) -> None:
    """RunPod's purge-queue empties the queue, and of the caller alone."""
    add(db, 3)
    add(db, owner="bob")
    (running,) = begin(db)
    assert len(purge_queue(db, "ann", START)) == 2
    assert get(db, "ann", running.id).state is JobState.RUNNING
    assert counts(db)[JobState.CANCELLED] == 2
    assert counts(db)[JobState.QUEUED] == 1


def test_pages_hold_every_job_once(db: sqlite3.Connection) -> None:
    """The newest first, also when jobs come and go between two pages."""
    ids = add(db, 7)
    add(db, owner="bob")
    first = page(db, "ann", None, 3, ())
    create(db, new_job(), LIMITS, START + 50)
    db.execute("DELETE FROM job WHERE id = ?", (first.jobs[-1].id,))  # the mark itself
    second = page(db, "ann", first.after, 3, ())
    third = page(db, "ann", second.after, 3, ())
    assert [job.id for part in (first, second, third) for job in part.jobs] == ids[::-1]
    assert third.after is None
    cancel(db, "ann", ids[0], START)
    assert [job.id for job in page(db, "ann", None, 9, [JobState.CANCELLED]).jobs] == [ids[0]]
    with pytest.raises(RequestError, match="mark of a page"):
        page(db, "ann", "abc~d", 3, ())


def test_finished_jobs_are_forgotten_by_age(db: sqlite3.Connection) -> None:
    """Each after its own time; for a day the answer says so, then there never was such a job."""
    brief, usual, waiting = add(db, keep=60.0) + add(db, 2)
    for id in (brief, usual):
        cancel(db, "ann", id, START)
    forget(db, LIMITS, START + 59)
    assert get(db, "ann", brief).state is JobState.CANCELLED
    forget(db, LIMITS, START + 60)
    assert code_of(db, brief) == "expired"
    assert code_of(db, brief, "bob") == "job_not_found"
    assert get(db, "ann", usual).state is JobState.CANCELLED
    forget(db, LIMITS, START + 60 + LIMITS.gone_seconds)
    assert code_of(db, brief) == "job_not_found"
    assert get(db, "ann", waiting).state is JobState.QUEUED


def test_finished_jobs_are_forgotten_by_size_the_oldest_first(db: sqlite3.Connection) -> None:
    """The disk is bounded, whatever the results weigh; failures weigh something too."""
    add(db, 6)
    jobs = begin(db, 5)
    for at, job in enumerate(jobs):
        assert succeed(db, job.id, job.lease, JobOutcome(data=bytes(10_000)), START + at)
    while forget(db, StoreLimits(keep_bytes=25_000), START + 10):
        pass
    assert [code_of(db, job.id) for job in jobs[:3]] == ["expired"] * 3
    assert all(get(db, "ann", job.id).outcome for job in jobs[3:])
    assert db.execute("SELECT count(*) FROM result").fetchone() == (2,)
    assert counts(db)[JobState.QUEUED] == 1
    forget(db, StoreLimits(keep_bytes=1), START + 10)
    assert counts(db) == dict.fromkeys(JobState, 0) | {JobState.QUEUED: 1}


def test_a_large_clearance_is_done_in_parts(db: sqlite3.Connection) -> None:
    """Acknowledgements wait for no transaction of minutes."""
    limits = StoreLimits(max_live=2000)
    for at in range(1100):
        create(db, new_job(), limits, START + at)
    purge_queue(db, "ann", START)
    rounds = 1
    while forget(db, limits, START + 10 * limits.keep_seconds):
        rounds += 1
    assert rounds == 3
    assert sum(counts(db).values()) == 0


def test_the_end_of_a_job_and_its_webhook_are_one(db: sqlite3.Connection) -> None:
    """Each end owes one call, until it is settled; a crash in between only repeats it."""
    told = add(db, 2, webhook="https://a.example/")
    add(db)
    (job,) = begin(db)
    succeed(db, job.id, job.lease, RESULT, START + 100)
    purge_queue(db, "ann", START + 100)
    calls = take_owed(db, 10, START + 100, 15.0)
    assert [(call.id, call.owner, call.tries) for call in calls] == [(id, "ann", 1) for id in told]
    assert take_owed(db, 10, START + 114, 15.0) == []
    settle(db, told[0])
    assert [(call.id, call.tries) for call in take_owed(db, 10, START + 115, 15.0)] == [(told[1], 2)]
    assert take_owed(db, 10, START + 144, 15.0) == []
    assert [call.tries for call in take_owed(db, 10, START + 145, 15.0)] == [3]


def test_a_job_is_kept_until_its_end_was_told(db: sqlite3.Connection) -> None:
    """The webhook is written from the job; and one that waits costs nobody else a result."""
    told, other = add(db, webhook="https://a.example/", keep=60.0) + add(db, keep=60.0)
    for job in begin(db, 2):
        succeed(db, job.id, job.lease, JobOutcome(data=bytes(10_000)), START)
    forget(db, StoreLimits(keep_bytes=12_000), START + 59)
    assert get(db, "ann", other).outcome
    forget(db, StoreLimits(keep_bytes=1), START + 10_000)
    assert code_of(db, other) == "expired"
    assert get(db, "ann", told).outcome
    settle(db, told)
    forget(db, LIMITS, START + 10_000)
    assert code_of(db, told) == "expired"


def test_no_question_walks_over_everything(db: sqlite3.Connection) -> None:
    """Polls and submissions must cost the same among a million kept jobs."""
    seen: list[str] = []
    db.set_trace_callback(seen.append)
    add(db, 2, idempotency_key="k")
    (job,) = begin(db)
    get(db, "ann", job.id)
    page(db, "ann", None, 5, ())
    succeed(db, job.id, job.lease, RESULT, START)
    expire_queued(db, START)
    take_owed(db, 5, START, 1.0)
    assert any("USING INDEX" in step for step in plans(db, seen))
    assert walks(plans(db, seen)) == []
    counts(db)  # the control: this one does, for a handful of metrics
    assert len(walks(plans(db, seen))) == 1


def plans(db: sqlite3.Connection, statements: list[str]) -> list[str]:
    known = list(statements)
    return [row[3] for text in known for row in db.execute(f"EXPLAIN QUERY PLAN {text}").fetchall()]


def walks(steps: list[str]) -> list[str]:
    return [step for step in steps if step.split()[:2] in (["SCAN", "job"], ["SCAN", "outbox"])]
