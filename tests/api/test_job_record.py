"""A durable job's states are a table."""

import itertools

import pytest

from api.job_record import TRANSITIONS, JobState, NewJob, sources_of
from batching import job as mux_job
from tests.api.jobs import new_job


def test_the_states_are_those_of_the_mux() -> None:
    """One vocabulary for all counts, although neither side may import the other."""
    assert {state.value for state in JobState} == {state.value for state in mux_job.JobState}


def test_only_a_run_that_is_taken_back_goes_backwards() -> None:
    """Everything else about the table is the mux's; only what was tried can fail."""
    mux = {(str(a), str(b)) for a, ends in mux_job.TRANSITIONS.items() for b in ends}
    ours = {(str(a), str(b)) for a, ends in TRANSITIONS.items() for b in ends}
    assert ours - mux == {("running", "queued")}
    assert mux - ours == {("queued", "failed")}


@pytest.mark.parametrize(("start", "to"), list(itertools.product(JobState, JobState)))
def test_the_table_reads_the_same_from_both_sides(start: JobState, to: JobState) -> None:
    """The SQL asks for the sources, people for the ends."""
    assert (start in sources_of(to)) is (to in TRANSITIONS[start])


@pytest.mark.parametrize("state", list(JobState))
def test_a_terminal_state_is_left_by_nothing(state: JobState) -> None:
    """A second end would be a second answer."""
    assert state.terminal is (state not in {JobState.QUEUED, JobState.RUNNING})


def test_equal_bytes_for_another_dialect_are_other_work() -> None:
    """Or one Idempotency-Key would answer an edit with a detection."""
    assert new_job(b"a").body_hash == new_job(b"a", owner="bob").body_hash
    assert new_job(b"a").body_hash != new_job(b"a", dialect="other").body_hash
    assert new_job(b"b", dialect="a").body_hash != new_job(b"", dialect="ab").body_hash


def test_no_log_line_holds_a_body_or_a_webhook() -> None:
    """Records are printed in errors; bodies hold prompts, webhook URLs hold tokens."""
    job = NewJob(owner="ann", dialect="echo", body=b"secret", webhook="https://a.example/?token=secret")
    assert "secret" not in repr(job)
