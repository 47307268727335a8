"""The job table under any order of events, against a model: hypothesis looks for one that breaks it."""

import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from api import job_lookup, job_outbox, job_retention, job_table
from api.job_record import JobOutcome, JobRecord, JobState, NewJob, StoreLimits
from core.errors import CapacityError, ExecutionError, RequestError, ServingError
from tests.api.jobs import START, new_job, table

LIMITS = StoreLimits(max_live=6, max_live_bytes=60, keep_seconds=50, keep_bytes=4200, gone_seconds=40)
FAULT = ExecutionError("pipeline_error", "it broke")
OWNERS = ("ann", "bob")
ENDS = ("succeed", "succeed", "fail", "late", "taken back", "taken back", "tried")
QUEUED, RUNNING = JobState.QUEUED, JobState.RUNNING


@dataclass
class Model:
    """What a job should be, written down independently."""

    new: NewJob
    created: float
    state: JobState = QUEUED
    since: float = 0.0  # when its time began
    attempts: int = 0
    lease: int = 0
    not_before: float = 0.0
    result: bytes | None = None
    owes_call: bool = False
    gone: bool = False

    @property
    def live(self) -> bool:
        return self.state in (QUEUED, RUNNING)

    @property
    def has_body(self) -> bool:
        return not self.gone and self.state not in (JobState.SUCCEEDED, JobState.CANCELLED)

    @property
    def nbytes(self) -> int:
        return 1024 + len(self.result or b"") + len(self.new.body) * self.has_body

    def end(self, state: JobState) -> None:
        self.state = state
        self.owes_call = self.new.webhook is not None


class JobMachine(RuleBasedStateMachine):
    """Plays every caller, the runner and the crashes, and keeps books of its own."""

    module: Any = job_table

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.db: sqlite3.Connection = self.stack.enter_context(table(folder))
        self.now = START
        self.jobs: dict[str, Model] = {}
        self.runs: list[JobRecord] = []  # every run ever begun, those taken back included

    def teardown(self) -> None:
        self.stack.close()

    def running(self) -> list[Model]:
        return [job for job in self.jobs.values() if job.state is RUNNING]

    @rule(
        owner=st.sampled_from(OWNERS),
        size=st.sampled_from([1, 9, 30]),
        key=st.sampled_from([None, "k", "l"]),
        ttl=st.sampled_from([None, 10.0]),
        webhook=st.sampled_from([None, "https://a.example/"]),
    )
    def submit(self, owner: str, size: int, key: str | None, ttl: float | None, webhook: str | None) -> None:
        new = new_job(bytes(size), owner, idempotency_key=key, ttl=ttl, webhook=webhook)
        same = [
            (id, job)
            for id, job in self.jobs.items()
            if key and not job.gone and (job.new.owner, job.new.idempotency_key) == (owner, key)
        ]
        live = [job for job in self.jobs.values() if job.live]
        held = sum(len(job.new.body) for job in live)
        if same and same[0][1].new.body != new.body:
            with pytest.raises(RequestError, match="Idempotency-Key"):
                self.module.create(self.db, new, LIMITS, self.now)
        elif same:
            job, fresh = self.module.create(self.db, new, LIMITS, self.now)
            assert (job.id, fresh) == (same[0][0], False)
        elif len(live) >= 6 or (live and held + size > 60):
            with pytest.raises(CapacityError):
                self.module.create(self.db, new, LIMITS, self.now)
        else:
            job, fresh = self.module.create(self.db, new, LIMITS, self.now)
            assert fresh
            assert job.id not in self.jobs
            self.jobs[job.id] = Model(new, self.now, since=self.now)

    @rule(seconds=st.sampled_from([0.5, 8.0, 45.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(limit=st.integers(1, 4))
    def claim(self, limit: int) -> None:
        busy = self.running()
        claimed = self.module.claim(self.db, limit, LIMITS, self.now)
        ready = [job for job in self.jobs.values() if self.is_ready(job)]
        if not any(job.attempts == 2 for job in ready) and not any(job.attempts == 3 for job in busy):
            assert len(claimed) == min(limit, len(ready)), "a job that could run does not"
        if ready and not busy:
            assert claimed, "nothing runs, and nothing is begun"
        for run in claimed:
            job = self.jobs[run.id]
            assert self.is_ready(job)
            assert run.body == job.new.body
            job.state, job.attempts, job.lease = RUNNING, job.attempts + 1, job.lease + 1
            assert (run.attempts, run.lease) == (job.attempts, job.lease)
            assert run.attempts <= 3
            self.runs.append(run)
        if any(job.attempts == 3 for job in self.running()):
            assert len(self.running()) == 1, "a last attempt has company"

    def is_ready(self, job: Model) -> bool:
        in_time = job.new.ttl is None or job.since + job.new.ttl > self.now
        return job.state is QUEUED and job.not_before <= self.now and in_time

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), how=st.sampled_from(ENDS), wait=st.sampled_from([0, 5]))
    def a_run_ends(self, data: st.DataObject, how: str, wait: int) -> None:
        """Whether it is the current one or was taken back long ago: then it must have no effect."""
        run = self.runs[-1 - data.draw(st.integers(0, min(3, len(self.runs) - 1)))]
        job = self.jobs[run.id]
        current = job.state is RUNNING and job.lease == run.lease
        args = (self.db, run.id, run.lease)
        if how == "succeed":
            answer = JobOutcome(data=b"answer %d" % run.lease)
            counted = self.module.succeed(*args, answer, self.now)
            if current:
                job.result = answer.data
                job.end(JobState.SUCCEEDED)
        elif how in ("fail", "late"):
            counted = self.module.fail(*args, FAULT, self.now, expired=how == "late")
            if current:
                job.end(JobState.EXPIRED if how == "late" else JobState.FAILED)
        else:
            tried, again = how == "tried", self.now + wait
            counted = self.module.release(*args, FAULT, LIMITS, self.now, not_before=again, counted=tried)
            if current and tried and job.attempts == 3:
                job.end(JobState.FAILED)
            elif current:
                job.state, job.not_before = QUEUED, again
                job.attempts -= not tried
        assert counted is current

    @precondition(lambda self: self.taken_back())
    @rule()
    def a_run_that_was_taken_back_answers(self) -> None:
        run = self.taken_back()[0]
        assert not self.module.succeed(self.db, run.id, run.lease, JobOutcome(data=b"stale"), self.now)

    def taken_back(self) -> list[JobRecord]:
        return [run for run in self.runs if self.jobs[run.id].state is RUNNING and self.is_old(run)]

    def is_old(self, run: JobRecord) -> bool:
        return self.jobs[run.id].lease > run.lease

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), owner=st.sampled_from(OWNERS))
    def cancel(self, data: st.DataObject, owner: str) -> None:
        id, job = list(self.jobs.items())[data.draw(st.integers(0, len(self.jobs) - 1))]
        if job.gone or owner != job.new.owner:
            with pytest.raises(RequestError):
                self.module.cancel(self.db, owner, id, self.now)
            return
        if job.live:
            job.end(JobState.CANCELLED)
        assert self.module.cancel(self.db, owner, id, self.now).state is job.state

    @precondition(lambda self: any(not job.live for job in self.jobs.values()))
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        ended = [(id, job) for id, job in self.jobs.items() if not job.live]
        id, job = ended[data.draw(st.integers(0, len(ended) - 1))]
        live = [other for other in self.jobs.values() if other.live]
        held = sum(len(other.new.body) for other in live) + len(job.new.body)
        if job.gone or not job.has_body or len(live) >= 6 or (live and held > 60):
            with pytest.raises(ServingError):
                self.module.retry(self.db, job.new.owner, id, LIMITS, self.now)
            return
        self.module.retry(self.db, job.new.owner, id, LIMITS, self.now)
        job.state, job.attempts, job.since, job.not_before = QUEUED, 0, self.now, self.now
        job.owes_call = False

    @rule(what=st.sampled_from(["purge", "expire", "forget"]), owner=st.sampled_from(OWNERS))
    def keep_house(self, what: str, owner: str) -> None:
        if what == "purge":
            self.purge(owner)
        elif what == "expire":
            self.expire()
        else:
            self.forget()

    def purge(self, owner: str) -> None:
        waiting = {i for i, job in self.jobs.items() if job.state is QUEUED and job.new.owner == owner}
        assert set(self.module.purge_queue(self.db, owner, self.now)) == waiting
        for id in waiting:
            self.jobs[id].end(JobState.CANCELLED)

    def expire(self) -> None:
        for id in self.module.expire_queued(self.db, self.now):
            job = self.jobs[id]
            assert job.state is QUEUED
            assert job.new.ttl is not None
            assert job.since + job.new.ttl <= self.now
            job.end(JobState.EXPIRED)
        late = [j for j in self.jobs.values() if j.state is QUEUED and j.new.ttl and j.since + 10 <= self.now]
        assert not late

    @rule()
    def crash(self) -> None:
        self.module.recover(self.db, LIMITS, self.now)
        for job in self.running():
            if job.attempts == 3:
                job.end(JobState.FAILED)
            else:
                job.state = QUEUED

    def forget(self) -> None:
        job_retention.forget(self.db, LIMITS, self.now)
        kept = {id for (id,) in self.db.execute("SELECT id FROM job")}
        for id, job in self.jobs.items():
            if id not in kept:
                assert not job.live, "a live job was forgotten"
                assert job.gone or not job.owes_call, "a job was forgotten whose webhook is still to be sent"
                job.gone = True
        finished = sum(j.nbytes for j in self.jobs.values() if not (j.live or j.gone or j.owes_call))
        assert finished <= LIMITS.keep_bytes

    @rule(settled=st.booleans())
    def deliver(self, settled: bool) -> None:
        for call in job_outbox.take_owed(self.db, 2, self.now, 5.0):
            assert self.jobs[call.id].owes_call
            if settled:
                job_outbox.settle(self.db, call.id)
                self.jobs[call.id].owes_call = False

    @invariant()
    def every_job_is_what_the_model_says(self) -> None:
        for id, job in self.jobs.items():
            if job.gone:
                continue
            found = job_lookup.get(self.db, job.new.owner, id)
            assert (found.state, found.attempts, found.lease) == (job.state, job.attempts, job.lease)
            assert (found.outcome.data if found.outcome else None) == job.result
            assert (found.finished is None) == job.live
        owed = {id for (id,) in self.db.execute("SELECT id FROM outbox JOIN job USING (seq)")}
        assert owed == {id for id, job in self.jobs.items() if job.owes_call}
        (bodies,) = self.db.execute("SELECT count(*) FROM body").fetchone()
        assert bodies == sum(job.has_body for job in self.jobs.values())


TestJobs = JobMachine.TestCase
TestJobs.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def hears_stale_runs(db: sqlite3.Connection, id: str, lease: int, outcome: JobOutcome, now: float) -> bool:
    row = db.execute("SELECT lease FROM job WHERE id = ?", (id,)).fetchone()
    return row is not None and job_table.succeed(db, id, row[0], outcome, now)


def never_gives_up(db: sqlite3.Connection, limits: StoreLimits, now: float) -> None:
    db.execute("UPDATE job SET state = 'queued' WHERE state = 'running'")


def loses_the_running(db: sqlite3.Connection, limits: StoreLimits, now: float) -> None:
    db.execute("DELETE FROM job WHERE state = 'running'")


def runs_early(db: sqlite3.Connection, limit: int, limits: StoreLimits, now: float) -> list[JobRecord]:
    return job_table.claim(db, limit, limits, now + 5)


def ignores_the_owner(db: sqlite3.Connection, owner: str, id: str, now: float) -> JobRecord:
    row = db.execute("SELECT owner FROM job WHERE id = ?", (id,)).fetchone()
    return job_table.cancel(db, row[0] if row else owner, id, now)


def makes_every_job_anew(
    db: sqlite3.Connection, new: NewJob, limits: StoreLimits, now: float
) -> tuple[JobRecord, bool]:
    return job_table.create(db, replace(new, idempotency_key=None), limits, now)


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("succeed", hears_stale_runs),
        ("recover", never_gives_up),
        ("recover", loses_the_running),
        ("claim", runs_early),
        ("cancel", ignores_the_owner),
        ("create", makes_every_job_anew),
    ],
)
def test_the_machine_finds_a_planted_bug(name: str, bug: Callable[..., Any]) -> None:
    """A check that cannot fail proves nothing."""

    class Broken(JobMachine):
        module = SimpleNamespace(**{**vars(job_table), name: bug})

    seek = settings(
        max_examples=400, stateful_step_count=40, deadline=None, derandomize=True, phases=[Phase.generate]
    )
    with pytest.raises((AssertionError, ServingError, ExceptionGroup, pytest.fail.Exception)):
        run_state_machine_as_test(Broken, settings=seek)
