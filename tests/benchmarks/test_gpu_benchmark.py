"""The benchmark for GPUs runs to its end where there is none, and says what it left out."""

from collections.abc import Callable

import pytest

from benchmarks import gpu

Lines = Callable[..., list[str]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    def run(*words: str) -> list[str]:
        assert gpu.benchmark(gpu.arguments(["--no-compile", *words])) == 0
        return capsys.readouterr().out.splitlines()

    return run


def test_it_runs_here_and_a_failure_is_a_line(lines: Lines) -> None:
    """A card that is too small for one cell must not cost the others; 4096 pixels are refused by the row."""
    head, _, titles, *table = lines("--precisions", "bf16", "4bit", "--sizes", "4096", "64", "--batches", "2")
    assert "no GPU here" in head
    assert titles.split()[:2] == ["side", "batch"]
    failed = [line for line in table if "4096" in line]
    assert len(failed) == 3, "both precisions, and stock"
    assert all("RequestError" in line for line in failed)
    measured = [line.split() for line in table if "     64" in line]
    assert [row[0] for row in measured] == ["bf16", "stock", "4bit"]
    for *_, prepare, step, decode, four, _, forty, _ in measured:
        assert abs(float(prepare) + 4 * float(step) + float(decode) - float(four)) < 0.02
        assert float(forty) > float(four)


def test_a_spent_budget_is_said(lines: Lines) -> None:
    """Silence would look like a figure that was forgotten."""
    *_, last = lines("--precisions", "4bit", "--budget", "0")
    assert "not run" in last
