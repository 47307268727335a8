"""Colours by value and by number, even to the eye: chosen in OKLab and turned into sRGB.

Source of the formulas: Björn Ottosson, "A perceptual color space for image processing", 2020.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

_TO_LMS = np.array(
    (
        (1.0, 0.3963377774, 0.2158037573),
        (1.0, -0.1055613458, -0.0638541728),
        (1.0, -0.0894841775, -1.2914855480),
    )
)
_TO_RGB = np.array(
    (
        (4.0767416621, -3.3077115913, 0.2309699292),
        (-1.2684380046, 2.6097574011, -0.3413193965),
        (-0.0041960863, -0.7034186147, 1.7076147010),
    )
)
_GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))


@cache
def by_value() -> NDArray[np.uint8]:
    """[256, 3]: from a dark violet to a bright yellow; equal steps of value are equal steps of lightness."""
    share = np.linspace(0, 1, 256)
    hue = np.radians(300 - 190 * share)
    chroma = 0.04 + 0.11 * np.sin(np.pi * share) + 0.06 * share
    return _srgb(0.15 + 0.80 * share, chroma, hue)


def by_number(count: int) -> NDArray[np.uint8]:
    """[count, 3]: one lightness, hues as far apart as can be for any number of them."""
    hue = 0.5 + _GOLDEN_ANGLE * np.arange(count)
    return _srgb(np.full(count, 0.72), np.full(count, 0.16), hue)


def _srgb(
    lightness: NDArray[np.float64], chroma: NDArray[np.float64], hue: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Chroma beyond what a screen can show is taken back, and lightness kept."""
    for _ in range(40):
        linear = _linear(lightness, chroma, hue)
        outside = (linear < -1e-4).any(axis=1) | (linear > 1 + 1e-4).any(axis=1)
        if not outside.any():
            break
        chroma = np.where(outside, chroma * 0.94, chroma)
    linear = np.clip(linear, 0, 1)
    shown = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    colours: NDArray[np.uint8] = np.rint(shown * 255).astype(np.uint8)
    return colours


def _linear(
    lightness: NDArray[np.float64], chroma: NDArray[np.float64], hue: NDArray[np.float64]
) -> NDArray[np.float64]:
    lab = np.stack((lightness, chroma * np.cos(hue), chroma * np.sin(hue)), axis=1)
    linear: NDArray[np.float64] = ((lab @ _TO_LMS.T) ** 3) @ _TO_RGB.T
    return linear
