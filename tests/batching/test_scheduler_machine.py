"""The scheduler under any order of events, in virtual time: hypothesis looks for one that breaks it."""

import math

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from batching.job import Job, JobState
from batching.scheduler import BatchPolicy, Rest, Scheduler, Tick
from core.errors import CapacityError
from core.pipeline import BatchKey
from tests.fakes import make_request

SIZES = ((16, 16), (32, 32), (64, 64))
TOKENS = {size: size[0] * size[1] // 256 for size in SIZES}


class SchedulerMachine(RuleBasedStateMachine):
    """Plays every caller and the device, and keeps books of its own."""

    @initialize(
        join=st.sampled_from(["step", "batch"]),
        order=st.sampled_from(["remaining", "fifo"]),
        size=st.integers(1, 5),
        tokens=st.sampled_from([1, 8, 1000]),
        prepared=st.integers(1, 8),
        patience=st.sampled_from([0.0, 2.0, 1000.0]),
    )
    def start(self, join: str, order: str, size: int, tokens: int, prepared: int, patience: float) -> None:
        self.policy = BatchPolicy(
            max_batch_size=size,
            max_queue=10,
            max_queue_bytes=200,
            max_batch_tokens=tokens,
            max_prepared=prepared,
            join=join,  # type: ignore[arg-type]
            order=order,  # type: ignore[arg-type]
            patience=patience,
            limit_seconds=5.0,
        )
        self.scheduler = self.make_scheduler(self.policy)
        self.now = 0.0
        self.number = 0
        self.accepted: list[Job] = []
        self.caps: dict[BatchKey, tuple[int, float]] = {}

    def make_scheduler(self, policy: BatchPolicy) -> Scheduler:
        return Scheduler(policy)

    @property
    def live(self) -> list[Job]:
        return [job for job in self.accepted if job.live]

    @rule(
        size=st.sampled_from(SIZES),
        steps=st.sampled_from([1, 2, 4, 9]),
        model=st.sampled_from(["one", "one", "two"]),
        cfg=st.sampled_from([1.0, 4.0]),
        timeout=st.sampled_from([None, 1.0, 30.0]),
    )
    def submit(
        self, size: tuple[int, int], steps: int, model: str, cfg: float, timeout: float | None
    ) -> None:
        queued = [job for job in self.live if job.state is JobState.QUEUED]
        request = make_request(
            f"job {self.number}",
            size=size,
            steps=steps,
            model=model,
            cfg=cfg,
            timeout=timeout,
            prompt="p" * 30,
        )
        self.number += 1
        held = sum(job.request.nbytes for job in self.live)
        full = bool(self.live) and (len(queued) >= 10 or held + request.nbytes > 200)
        if full:
            with pytest.raises(CapacityError) as caught:
                self.scheduler.submit(request, self.now)
            assert caught.value.retry_after is not None
            assert 1 <= caught.value.retry_after <= 120
        else:
            self.accepted.append(self.scheduler.submit(request, self.now))

    @rule(seconds=st.sampled_from([0.001, 0.5, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.scheduler.finish(data.draw(st.sampled_from(self.live)), JobState.CANCELLED)

    @rule(fault=st.sampled_from([None, None, None, "raise", "short", "memory"]), data=st.data())
    def tick(self, fault: str | None, data: st.DataObject) -> None:
        self.device_tick(fault, data)

    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        """Whatever the state, what was accepted ends after a bounded number of ticks."""
        for _ in range(20 * len(self.live) + 1):
            if not self.live:
                break
            if (rest := self.device_tick(None, data)) is not None and self.live:
                assert rest.until < math.inf, "work is left, and nothing will ever start it"
                self.now = max(self.now, rest.until)
        assert not self.live

    def device_tick(self, fault: str | None, data: st.DataObject) -> Rest | None:
        for job in self.scheduler.due(self.now):
            assert job.deadline <= self.now
            self.scheduler.finish(job, JobState.EXPIRED)
        assert all(job.deadline > self.now for job in self.live), "an expired job would run"
        before = {job: job.state for job in self.live}
        tick = self.scheduler.plan(self.now)
        if isinstance(tick, Rest):
            assert tick.until > self.now
            return tick
        self.check(tick, before)
        seconds = 0.1 + 0.01 * len(tick.rows)
        self.now += seconds
        rows = list(tick.rows)
        if fault == "memory" and len(rows) > 1:
            self.scheduler.limit(tick, len(rows) // 2, self.now)
            self.caps[tick.key] = (len(rows) // 2, self.now + 5.0)
            groups = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
        else:
            groups = [rows]
        for group in groups:
            self.scheduler.stepped(tick, group, seconds, self.now)
        if fault in {"raise", "short"}:
            self.scheduler.finish(data.draw(st.sampled_from(rows)), JobState.FAILED)
        for job in rows:
            if job.remaining == 0 and job.live:
                self.scheduler.finish(job, JobState.SUCCEEDED)
        self.scheduler.ticked(tick, self.now)
        return None

    def check(self, tick: Tick, before: dict[Job, JobState]) -> None:
        rows, policy = tick.rows, self.policy
        assert rows
        assert len(set(rows)) == len(rows)
        assert all(job in before and job.state is JobState.RUNNING and job.remaining > 0 for job in rows)
        assert {job for job in rows if before[job] is JobState.QUEUED} == set(tick.admitted)
        assert len({BatchKey.of(job.request, together=policy.join == "batch") for job in rows}) == 1
        assert len(rows) <= policy.max_batch_size
        assert len(rows) == 1 or sum(job.request.tokens for job in rows) <= policy.max_batch_tokens
        running = [job for job in self.live if job.state is JobState.RUNNING]
        assert len(running) <= max(policy.max_prepared, policy.max_batch_size)
        assert len({job.key.model for job in running}) == 1
        assert tick.first == (JobState.RUNNING not in before.values())
        cap, until = self.caps.get(tick.key, (math.inf, 0.0))
        if tick.started < until and policy.join == "step":
            assert len(rows) <= cap
        if policy.join == "batch" and not tick.first:
            assert not tick.admitted

    @invariant()
    def every_job_is_in_one_state(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        counts = self.scheduler.counts()
        assert self.scheduler.accepted == len(self.accepted) == sum(counts.values())
        assert counts == {state: sum(job.state is state for job in self.accepted) for state in JobState}
        assert self.scheduler.jobs == self.live


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


class ForgetsToExpire(Scheduler):
    def due(self, now: float) -> list[Job]:
        return []


class LosesAJob(Scheduler):
    def finish(self, job: Job, to: JobState) -> None:
        super().finish(job, to)
        if to is JobState.FAILED:
            self.accepted -= 1


class RunsTooMany(Scheduler):
    def plan(self, now: float, *, admit: bool = True) -> Tick | Rest:
        plan = super().plan(now, admit=admit)
        others = [job for job in self.jobs if isinstance(plan, Tick) and job not in plan.rows]
        if isinstance(plan, Tick) and others:
            return Tick(plan.lane, plan.admitted, (*plan.rows, others[0]), plan.started, plan.first)
        return plan


class Starves(Scheduler):
    def plan(self, now: float, *, admit: bool = True) -> Tick | Rest:
        return super().plan(now, admit=False)


@pytest.mark.parametrize("broken", [ForgetsToExpire, LosesAJob, RunsTooMany, Starves])
def test_the_machine_finds_a_planted_bug(broken: type[Scheduler]) -> None:
    """A check that cannot fail proves nothing."""

    class Machine(SchedulerMachine):
        def make_scheduler(self, policy: BatchPolicy) -> Scheduler:
            return broken(policy)

    seek = settings(
        max_examples=300, stateful_step_count=40, deadline=None, database=None, phases=[Phase.generate]
    )
    with pytest.raises((AssertionError, ExceptionGroup)):
        run_state_machine_as_test(Machine, settings=seek)
