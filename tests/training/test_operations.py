"""The exact edits: what a trained model is measured against has to be right itself."""

import pytest
import torch
from torch import Tensor

from training.operations import BLOCK, BORDER, OPERATIONS, blend


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_edit_keeps_size_and_range(name: str, pictures: Tensor) -> None:
    """And leaves its input alone: several edits are made of one picture."""
    before = pictures.clone()
    edited = OPERATIONS[name](pictures, 1.0)
    assert edited.shape == pictures.shape
    assert 0 <= float(edited.min()) <= float(edited.max()) <= 1 + 1e-5
    assert torch.equal(pictures, before)


def test_undoing_gives_the_picture_back(pictures: Tensor) -> None:
    """Two edits are their own opposites."""
    for name in ("flip", "invert"):
        twice = OPERATIONS[name](OPERATIONS[name](pictures, 1.0), 1.0)
        assert torch.allclose(twice, pictures, atol=1e-6)


def test_a_border_frames_what_is_inside(pictures: Tensor) -> None:
    """One token wide, in its colour, with the picture untouched within."""
    framed = OPERATIONS["red border"](pictures, 1.0)
    inner = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    assert torch.equal(framed[inner], pictures[inner])
    assert torch.equal(framed[..., 0, 0], torch.tensor([[0.85, 0.1, 0.1]] * 2))


def test_pixels_are_blocks(pictures: Tensor) -> None:
    """Each block has one colour, the mean of what it covers."""
    block = OPERATIONS["pixelate"](pictures, 1.0)[..., :BLOCK, :BLOCK]
    assert torch.allclose(block, pictures[..., :BLOCK, :BLOCK].mean((2, 3), keepdim=True).expand_as(block))


@pytest.mark.parametrize("name", ["blur", "brighter", "darker", "contrast", "warmer", "cooler"])
def test_more_strength_changes_more(name: str, pictures: Tensor) -> None:
    """Strength words must mean something."""
    changes = [(OPERATIONS[name](pictures, s) - pictures).square().mean() for s in (0.5, 1.0, 1.5)]
    assert changes[0] < changes[1] < changes[2]


def test_a_blend_is_half_of_each(pictures: Tensor) -> None:
    """Neither picture is favoured, so their order does not matter."""
    first, second = pictures.split(1)  # type: ignore[no-untyped-call]
    assert torch.equal(blend(first, second), blend(second, first))
