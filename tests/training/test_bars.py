"""A missed bar is named and fails the run; one that is met does not."""

import pytest

from training.bars import Bar, drops, edit_bars, lightning_bars, report

STRAIGHT = {
    "20": 28.0, "4": 28.0, "4 alone": 27.9, "4 LoRA": 28.2, "2": 27.0, "2 alone": 27.2, "2 LoRA": 28.1,
}  # fmt: skip


def test_a_missed_bar_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever runs it in CI reads the last lines only."""
    bars = edit_bars(
        autoencoder=28.0, mean=25.0, means={"flip": 27.0, "sketch": 17.0}, gains={"flip": 12.0, "sketch": 9.0}
    )
    assert report(bars) == 1
    told = capsys.readouterr().out
    assert "MISSED sketch: 17.00 dB, at least 18" in told
    assert "5 of 6 bars met" in told


def test_all_met_is_success(capsys: pytest.CaptureFixture[str]) -> None:
    """Exactly at the bar counts."""
    assert report([Bar("gain of contrast", 6.0, 6.0)]) == 0
    assert "1 of 1 bars met" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, []),
        ({"4 LoRA": 26.9}, ["LoRA at 4 steps over 20 without"]),
        ({"2 LoRA": 27.0}, ["LoRA's gain at 2 steps"]),
        ({"2 alone": 28.1}, ["LoRA's gain at 2 steps"]),  # the schedule's merit is not the LoRA's
        ({"4": 25.0, "4 alone": 25.0, "2 LoRA": 20.0}, []),
        ({"4": 27.5, "4 LoRA": 27.5}, ["LoRA's gain at 4 steps"]),
    ],
)
def test_the_lora_must_repair_what_there_is_to_repair(change: dict[str, float], missed: list[str]) -> None:
    """At four steps where they lose something, otherwise at two."""
    figures = STRAIGHT | change
    assert [bar.name for bar in lightning_bars(figures) if not bar.met] == missed
    assert drops(figures) == ("4" in change)
