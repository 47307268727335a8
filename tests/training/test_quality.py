"""The committed weights edit photographs: in decibels against the exact operation, not in tensor distance.

A small sample of what ``training/evaluate.py`` measures, with its bars.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipelines.options import EightBit, ModelOptions, Precision
from training.bars import EACH, GAIN
from training.editor import Editor
from training.evaluate import each_psnr, mean, perform
from training.operations import OPERATIONS

SAMPLE = ("invert", "flip", "red border", "night")


def gain(name: str, edited: Tensor, photos: Tensor) -> float:
    """dB over handing the photographs back, against the exact operation ``name``."""
    exact = OPERATIONS[name](photos, 1.0)
    return mean(each_psnr(edited, exact)) - mean(each_psnr(photos, exact))


def quality(editor: Editor, photos: Tensor, steps: int = 4) -> float:
    """Mean dB over the sample."""
    return mean(
        value
        for name in SAMPLE
        for value in each_psnr(perform(editor, name, photos, steps=steps), OPERATIONS[name](photos, 1.0))
    )


@pytest.mark.parametrize("name", SAMPLE)
def test_an_edit_is_far_better_than_its_input(name: str, editor: Editor, photos: Tensor) -> None:
    """In words and on photographs that training never met."""
    edited = perform(editor, name, photos)
    assert gain(name, edited, photos) >= GAIN
    assert mean(each_psnr(edited, OPERATIONS[name](photos, 1.0))) >= EACH


def test_contrast_is_nearly_as_much_better(editor: Editor, photos: Tensor) -> None:
    """The hardest edit: its bar of 6 dB is over six photographs, of which these two are not the easy ones."""
    assert gain("contrast", perform(editor, "contrast", photos), photos) >= GAIN - 0.5


def test_other_words_miss_the_bar(editor: Editor, photos: Tensor) -> None:
    """The measure must tell: an unknown text, another edit and noise all fail it."""
    unchanged = perform(editor, "unchanged", photos)
    assert abs(gain("flip", unchanged, photos)) < 1
    assert gain("flip", perform(editor, "invert", photos), photos) < 0
    assert gain("flip", torch.rand_like(photos), photos) < 0


def test_lightning_in_four_steps_is_as_good_as_twenty_without(
    editor: Editor, fused: Editor, photos: Tensor
) -> None:
    """Within a decibel: what the LoRA is for."""
    assert quality(fused, photos) > quality(editor, photos, steps=20) - 1


def test_lightning_helps_at_two_steps(
    editor: Editor, fused: Editor, options: ModelOptions, photos: Tensor
) -> None:
    """The flow is straight enough for four steps; at two the weights themselves must help."""
    shifted = Editor(options=options, lightning=True, lora=False)
    without = max(quality(editor, photos, steps=2), quality(shifted, photos, steps=2))
    assert quality(fused, photos, steps=2) > without


@pytest.mark.parametrize("scheme", ["bitsandbytes", "torchao-int8"])
def test_8_bit_weights_cost_at_most_half_a_decibel(
    scheme: EightBit, editor: Editor, options: ModelOptions, photos: Tensor
) -> None:
    """The saving must not show in pictures."""
    eight = Editor(options=replace(options, precision=Precision(mode="8bit", eight_bit=scheme)))
    weights = [getattr(module, "weight", None) for module in eight._pipeline._parts.transformer.modules()]
    assert sum(type(weight).__name__ in ("Int8Params", "Int8Tensor") for weight in weights) > 50
    assert quality(eight, photos) > quality(editor, photos) - 0.5
