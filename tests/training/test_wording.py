"""What is measured must not be what was trained on, and a text must mean what it says."""

import random

import pytest

from training.operations import OPERATIONS
from training.wording import BLEND, HELD_OUT, UNCHANGED, has_strength, say

EVERY = (*OPERATIONS, BLEND)


def plain(text: str) -> str:
    return text.lower().replace("colour", "color").rstrip(".!? ")


def test_held_out_texts_are_never_said() -> None:
    """Thousands of draws, compared without capitals, full stops and spelling of colour."""
    draw = random.Random(0)
    said = {plain(say(name, strength, draw).text) for name in EVERY for strength in (0.5, 1.0, 1.5) * 60}
    assert len(said) > 2000
    assert not said & {plain(text) for texts in HELD_OUT.values() for text in texts}


def test_the_same_draw_says_the_same() -> None:
    """A resumed training must go on as if it had not stopped."""
    assert [say(name, 1.0, random.Random(3)) for name in EVERY] == [
        say(name, 1.0, random.Random(3)) for name in EVERY
    ]


@pytest.mark.parametrize("name", [name for name in EVERY if name != UNCHANGED])
def test_no_place_is_left_open(name: str) -> None:
    """A frame's braces in a text would be learned as words."""
    draw = random.Random(1)
    for strength in (0.5, 1.0, 1.5) * 40:
        wish = say(name, strength, draw)
        assert "{" not in wish.text
        if name.endswith(" border"):
            assert name.split()[0] in wish.text.lower()
        assert wish.strength == (strength if has_strength(name) else 1.0)


def test_every_edit_has_held_out_texts() -> None:
    """Borders of other colours are asked for as red ones are."""
    borders = {name for name in OPERATIONS if name.endswith(" border")} - {"red border"}
    assert set(HELD_OUT) == set(EVERY) - borders
    assert all(len(set(texts)) >= 4 for texts in HELD_OUT.values())
