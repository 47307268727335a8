"""A finished picture and what is told of it, whoever made it."""

from dataclasses import dataclass
from typing import Any

import pybase64

from command.failure import FAILED, Failure


@dataclass(frozen=True, slots=True)
class Made:
    """``facts`` are the answer's other fields."""

    data: bytes
    facts: dict[str, Any]

    @property
    def sentence(self) -> str:
        told = self.facts
        return (
            f"{told.get('width', '?')}x{told.get('height', '?')}, {told.get('model', 'unknown model')}, "
            f"{told.get('num_inference_steps', '?')} steps, seed {told.get('seed', '?')}"
        )


def made(answer: object) -> Made:
    """Of the flat dialect's answer. Raises ``Failure`` when it is none."""
    try:
        assert isinstance(answer, dict)
        text = answer["image"]
        facts = {name: value for name, value in answer.items() if name != "image"}
        return Made(pybase64.b64decode(text.rpartition(",")[2], validate=True), facts)
    except (AssertionError, KeyError, AttributeError, TypeError, ValueError):
        raise Failure("the answer holds no picture; is --url the address of a batchmux?", FAILED) from None
