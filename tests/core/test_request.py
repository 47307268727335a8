"""Pictures as the core holds them."""

import pytest

from core.request import Image


def test_pictures_without_a_digest_get_one_of_their_own() -> None:
    """Two users' pictures must never share cached latents; nor may one reshaped."""
    flat, tall = (Image(pixels=bytes(18), width=w, height=h) for w, h in ((3, 2), (2, 3)))
    assert flat.digest != tall.digest
    with pytest.raises(ValueError, match="0x0"):
        Image(pixels=b"", width=0, height=0)
