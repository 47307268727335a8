"""The vision benchmark for GPUs runs to its end where there is none, and its networks have the real sizes."""

import pytest
from accelerate import init_empty_weights

from benchmarks import gpu_vision
from benchmarks.random_vision import FAMILIES


def test_every_family_is_a_line_of_each_batch(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where a cell fails: a batch of none cannot be stacked."""
    words = ["--precisions", "bf16", "--batches", "2", "0"]
    assert gpu_vision.benchmark(gpu_vision.arguments(words)) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert "no GPU here" in head
    for name in FAMILIES:
        measured = [line.split() for line in lines if line.startswith(f"{name:16}bf16       2 ")]
        assert len(measured) == 1, lines
        *_, prepare, step, decode, by_step, whole, _ = measured[0]
        assert float(by_step) == pytest.approx(2 / float(step), rel=0.1)
        assert float(whole) == pytest.approx(2 / (float(prepare) + float(step) + float(decode)), rel=0.1)
    assert any(line.startswith(f"{'dinov3':16}bf16       0 failed") for line in lines), lines


def test_a_spent_budget_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Silence would look like a figure that was forgotten."""
    gpu_vision.benchmark(gpu_vision.arguments(["--families", "dinov3", "--budget", "0"]))
    assert capsys.readouterr().out.count("not run") == len(gpu_vision.PRECISIONS)


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_are_as_large_as_the_published(name: str) -> None:
    """A width that slipped would make all times those of another model."""
    with init_empty_weights(include_buffers=True):
        network = FAMILIES[name].network()
    millions = sum(weight.numel() for weight in network.parameters()) / 1e6
    assert millions == pytest.approx(FAMILIES[name].parameters, rel=0.02)
