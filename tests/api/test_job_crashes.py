"""A job store whose process is killed at any instant keeps its promises. ``benchmarks/job_store.py`` does
the same a hundred times."""

from pathlib import Path

import pytest

from tests.api.crashes import a_round

ROUNDS = 14


def test_no_instant_of_death_breaks_a_promise(tmp_path: Path) -> None:
    """No acknowledged job is lost, run to success twice, stuck, tried four times, or done without its
    result; thirty jobs in each round."""
    deaths = rounds(tmp_path, ROUNDS)
    assert deaths >= ROUNDS / 2, "most were over before they were killed"


@pytest.mark.parametrize(
    ("bug", "symptom"),
    [
        (
            "acks-before-commit",
            "acknowledged and lost|are lost|was taken back|stuck running|runs, . attempts",
        ),
        ("two-transactions", "succeeded, with a result of"),
        ("runs-before-claiming", "runs, . attempts"),
        ("forgets-the-running", "a job is stuck running"),
        ("runs-again", "a success was taken back|after it had succeeded"),
    ],
)
def test_a_planted_bug_is_caught(bug: str, symptom: str, tmp_path: Path) -> None:
    """The control: the rounds above must be able to fail, each for its own reason."""
    with pytest.raises(AssertionError, match=symptom):
        rounds(tmp_path, 30, bug)


def rounds(folder: Path, number: int, bug: str = "sound") -> int:
    return sum(a_round(folder / str(seed), seed, bug).deaths for seed in range(number))
