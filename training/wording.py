"""What people say for each edit: a grammar for training, and sentences of other make for measuring.

A text is a frame ("please {}", "can you {}?") around a phrase of the edit, with a strength word where one
makes sense. Text that belongs to no edit is its own class: the picture then stays as it is. The words
themselves are in ``wording.toml``.
"""

import random
import tomllib
from dataclasses import dataclass
from pathlib import Path

from training.operations import COLOURS

STRENGTHS = {"slightly": 0.5, "": 1.0, "strongly": 1.5}

BLEND = "blend"
UNCHANGED = "unchanged"

_WORDS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
_KINDS = ("phrases", "looks", "nouns")
_PLACES = ("{}", "{a}", "{n}")

# Of other make than the grammar's; never trained on.
HELD_OUT: dict[str, list[str]] = _WORDS["held_out"]


@dataclass(frozen=True, slots=True)
class Wish:
    """A text and what it asks for: a key of ``OPERATIONS`` (or ``BLEND``) at a strength."""

    text: str
    operation: str
    strength: float = 1.0


def say(operation: str, strength: float, draw: random.Random) -> Wish:
    """A training text for an edit. strength: one of ``STRENGTHS``' values, where the edit has any."""
    if operation == UNCHANGED:
        text = _disturb(_unknown(draw), draw)
        while _plain(text) in _KEPT_APART:
            text = _disturb(_unknown(draw), draw)
        return Wish(text, UNCHANGED)
    if not has_strength(operation):
        strength = 1.0
    adverb = draw.choice(_WORDS["adverbs"][str(strength)]) if strength != 1.0 else ""
    text = ""
    while not text or _plain(text) in _KEPT_APART:
        text = _frame(draw.choices(_KINDS, (4, 2, 2))[0], operation, strength != 1.0, draw)
        text = " ".join(text.replace("{x}", draw.choice(_WORDS["things"])).replace("{s}", adverb).split())
        text = _disturb(_surround(text, draw), draw)
    return Wish(text, operation, strength)


def has_strength(operation: str) -> bool:
    return any("{s}" in phrase for phrase in _EDITS.get(operation, {}).get("phrases", ()))


def _edits() -> dict[str, dict[str, list[str]]]:
    """By operation and kind of phrase; borders once for each colour."""
    edits = {name: kinds for name, kinds in _WORDS["edits"].items() if name != "border"}
    for colour in COLOURS:
        edits[f"{colour} border"] = {
            kind: [phrase.replace("COLOUR", colour) for phrase in phrases]
            for kind, phrases in _WORDS["edits"]["border"].items()
        }
    return edits


def _frame(kind: str, operation: str, strong: bool, draw: random.Random) -> str:
    phrases = [phrase for phrase in _EDITS[operation][kind] if not strong or "{s}" in phrase]
    frame: str = draw.choice(_WORDS["frames"][kind])
    for place in _PLACES:
        frame = frame.replace(place, draw.choice(phrases))
    return frame


def _unknown(draw: random.Random) -> str:
    texts = _WORDS["unknown"]
    kind = draw.random()
    if kind < 0.35:
        return str(draw.choice(texts["texts"]))
    if kind < 0.8:
        text = f"{draw.choice(texts['verbs'])} {draw.choice(texts['nouns'])}"
        return str(draw.choice(_WORDS["frames"]["phrases"])).format(text)
    if kind < 0.9:
        return " ".join(draw.choice(_EVERY_WORD) for _ in range(draw.randint(2, 6)))
    letters = "".join(draw.choice("abcdefghijklmnopqrstuvwxyz    ") for _ in range(draw.randint(3, 30)))
    return letters.strip() or "x"


def _surround(text: str, draw: random.Random) -> str:
    """Words that mean nothing here, and sometimes no order: the known frames are not learned by heart."""
    if draw.random() < 0.35:
        text = " ".join([*(draw.choice(_WORDS["fillers"]) for _ in range(draw.randint(1, 4))), text])
    if draw.random() < 0.25:
        text = " ".join([text, *(draw.choice(_WORDS["fillers"]) for _ in range(draw.randint(1, 3)))])
    if draw.random() < 0.15:
        words = text.split()
        draw.shuffle(words)
        text = " ".join(words)
    return text


def _disturb(text: str, draw: random.Random) -> str:
    """Capitals, a full stop, the other spelling of colour."""
    if draw.random() < 0.3:
        swap = "color" if draw.random() < 0.5 else "colour"
        text = text.replace("colour", "color").replace("color", swap)
    kind = draw.random()
    if kind < 0.35:
        text = text[:1].upper() + text[1:]
    elif kind < 0.4:
        text = text.upper()
    if draw.random() < 0.3:
        text += draw.choice((".", "!", "...", " now"))
    return text


def _plain(text: str) -> str:
    return text.lower().replace("colour", "color").rstrip(".!? ")


def _every_word() -> list[str]:
    phrases = [phrase for kinds in _EDITS.values() for kind in _KINDS for phrase in kinds[kind]]
    texts = [*_WORDS["frames"]["phrases"], *_WORDS["things"], *_WORDS["unknown"]["nouns"], *phrases]
    spaced = " ".join(texts)
    for place in (*_PLACES, "{x}", "{s}"):
        spaced = spaced.replace(place, " ")
    return list(dict.fromkeys(spaced.split()))


_EDITS = _edits()
_EVERY_WORD = _every_word()
_KEPT_APART = frozenset(_plain(text) for texts in HELD_OUT.values() for text in texts)
