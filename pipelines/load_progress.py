"""How far one load is, in bytes and seconds; told to whoever asks, and to the log now and then."""

import logging
from collections.abc import Callable

from core.service import Loading

log = logging.getLogger(__name__)

LOG_EVERY = 5.0  # seconds
FILES = "files"  # the stage in which they are found or fetched
_GB = 1e9


class LoadProgress:
    """The ``Report`` of one load.

    Bytes are counted over all stages of a phase: first those of files that are fetched, then, from
    ``weights`` on, those that are read. publish: is given a sentence and the figures, at every change.
    Called by one thread at a time, or by the hub client's threads while it fetches; a figure that one of
    those overtakes is right again with the next.
    """

    def __init__(
        self, model: str, clock: Callable[[], float], publish: Callable[[str, Loading], None]
    ) -> None:
        self._model, self._clock, self._publish = model, clock, publish
        self._title = self._stage = "importing libraries"
        self._expected = 0
        self._before = self._done = self._total = 0  # bytes of earlier stages, and of this one
        self._paced: tuple[float, int] | None = None  # when counting began in this phase, and at how many
        self._logged = clock() - LOG_EVERY
        self._tell()

    def stage(self, name: str, number: int, total: int) -> None:
        self._before += self._total
        self._done = self._total = 0
        self._stage, self._title = name, f"{name} ({number} of {total})"
        self._tell()

    def files(self) -> None:
        """The files are being found, or fetched."""
        self._stage, self._title = FILES, "files"
        self._tell()

    def weights(self, total: int) -> None:
        """All files are here; ``total`` bytes of them are going to be read."""
        self._before = self._done = self._total = 0
        self._expected, self._paced = total, None

    def bytes(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        if self._paced is None:
            self._paced = self._clock(), self._before + done
        self._tell()

    def _tell(self) -> None:
        state = self._state()
        sentence = f"{self._model} is loading: {self._title}"
        if state.percent is not None:
            figures = f"{state.bytes_done / _GB:.1f} of {state.bytes_total / _GB:.1f} GB"
            sentence += f", {state.percent:.0f} % ({figures})"
        if state.seconds_left is not None:
            sentence += f", about {state.seconds_left:.0f} s left"
        self._publish(sentence, state)
        now = self._clock()
        if now - self._logged >= LOG_EVERY:
            self._logged = now
            log.info("%s", sentence)

    def _state(self) -> Loading:
        done = self._before + self._done
        total = max(self._expected, self._before + self._total)
        percent = 100 * done / total if total else None
        left = None
        if self._paced is not None and total:
            began, at = self._paced
            seconds = self._clock() - began
            if done > at and seconds > 0:
                left = (total - done) * seconds / (done - at)
        return Loading(
            model=self._model,
            stage=self._stage,
            bytes_done=done,
            bytes_total=total,
            percent=None if percent is None else round(percent, 1),
            seconds_left=None if left is None else round(left, 1),
        )
