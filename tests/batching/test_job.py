"""A job's states are a table."""

import itertools

import pytest

from batching.job import TRANSITIONS, Job, JobState
from core.pipeline import BatchKey
from tests.fakes import make_request


def job_in(state: JobState) -> Job:
    request = make_request()
    job = Job(request, BatchKey.of(request), 1, 0.0)
    job.state = state
    return job


@pytest.mark.parametrize(("start", "to"), list(itertools.product(JobState, JobState)))
def test_only_the_tables_transitions_are_possible(start: JobState, to: JobState) -> None:
    """A second terminal state would be a second answer."""
    job = job_in(start)
    if to in TRANSITIONS[start]:
        job.advance(to)
        assert job.state is to
    else:
        with pytest.raises(ValueError, match="cannot go"):
            job.advance(to)
        assert job.state is start


@pytest.mark.parametrize("state", list(JobState))
def test_a_job_is_live_until_a_terminal_state(state: JobState) -> None:
    """The two ways of asking must agree."""
    assert job_in(state).live is not state.terminal
    assert state.terminal is (state not in {JobState.QUEUED, JobState.RUNNING})
