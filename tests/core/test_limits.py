"""Sizes and numbers held against limits."""

from hypothesis import given
from hypothesis import strategies as st

from core.limits import fit_area


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_fitted_sizes_are_positive_multiples(width: int, height: int) -> None:
    """A zero side would crash the autoencoder."""
    fitted = fit_area((width, height), 1024 * 1024, 32)
    assert all(side >= 32 and side % 32 == 0 for side in fitted)
