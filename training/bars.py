"""What the pocket checkpoint must reach, and a verdict that names what it misses."""

from collections.abc import Mapping
from dataclasses import dataclass

AUTOENCODER, MEAN, EACH, GAIN = 27.0, 22.0, 18.0, 6.0  # dB
LIGHTNING = 1.0  # dB that 4 steps with the LoRA may be behind 20 without it
LEAST = 0.1  # dB that count as a difference


@dataclass(frozen=True, slots=True)
class Bar:
    """One demand: ``value`` is at least ``least``."""

    name: str
    value: float
    least: float

    @property
    def met(self) -> bool:
        return self.value >= self.least

    def __str__(self) -> str:
        return (
            f"{'met   ' if self.met else 'MISSED'} {self.name}: {self.value:.2f} dB, at least {self.least:g}"
        )


def edit_bars(
    *, autoencoder: float, mean: float, means: Mapping[str, float], gains: Mapping[str, float]
) -> list[Bar]:
    """means: PSNR by edit. gains: over the unedited picture, by edit that changes it."""
    return [
        Bar("autoencoder", autoencoder, AUTOENCODER),
        Bar("mean of the edits", mean, MEAN),
        *(Bar(f"{name}", value, EACH) for name, value in means.items()),
        *(Bar(f"gain of {name}", value, GAIN) for name, value in gains.items()),
    ]


def drops(means: Mapping[str, float]) -> bool:
    """Whether 4 steps without the LoRA are worse than 20, by the means of each column."""
    return means["20"] - means["4"] > LEAST


def lightning_bars(means: Mapping[str, float]) -> list[Bar]:
    """means: by column of the LoRA's table. Where 4 steps lose nothing, the LoRA must help at 2.

    Its gain is over the better of both schedules without it: it must come from the weights.
    """
    steps = "4" if drops(means) else "2"
    without = max(means[steps], means[f"{steps} alone"])
    return [
        Bar("LoRA at 4 steps over 20 without", means["4 LoRA"] - means["20"], -LIGHTNING),
        Bar(f"LoRA's gain at {steps} steps", means[f"{steps} LoRA"] - without, LEAST),
    ]


def report(bars: list[Bar]) -> int:
    """Print every missed bar, and the closest of those met; 1 when one is missed."""
    missed = [bar for bar in bars if not bar.met]
    for bar in missed or sorted(bars, key=lambda bar: bar.value - bar.least)[:3]:
        print(bar)
    print(f"{len(bars) - len(missed)} of {len(bars)} bars met")
    return 1 if missed else 0
