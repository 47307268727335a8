"""One line on standard error that says how far the work is; where nobody watches, only its stages."""

import itertools
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_WIDTH = 24
_SPIN = "|/-\\"


class Display:
    """``stage`` may be called as often as is convenient."""

    def __init__(self) -> None:
        self._watched = sys.stderr.isatty()
        self._last = ""
        self._turn = itertools.cycle(_SPIN)

    def stage(self, text: str) -> None:
        """Something of which nobody knows how long it takes."""
        if self._watched:
            self._draw(f"{next(self._turn)} {text}")
        elif text != self._last:
            self._last = text
            print(text, file=sys.stderr, flush=True)

    def steps(self, done: int, of: int) -> None:
        if self._watched:
            self._draw(f"[{bar(done, of)}] step {done} of {of}")
        else:
            self.stage("denoising")

    def clear(self) -> None:
        if self._watched:
            self._draw("")

    def _draw(self, line: str) -> None:
        room = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[K{line[:room]}", end="", file=sys.stderr, flush=True)


def bar(done: int, of: int) -> str:
    filled = _WIDTH * min(done, of) // max(of, 1)
    return "#" * filled + "-" * (_WIDTH - filled)


@contextmanager
def shown() -> Iterator[Display]:
    display = Display()
    try:
        yield display
    finally:
        display.clear()
