"""How far a load is, as a person waiting for it wants to know."""

import logging

import pytest

from core.service import Loading
from pipelines.load_progress import LOG_EVERY, LoadProgress


class Watched:
    """A progress under a clock of the test's, and all that it published."""

    def __init__(self) -> None:
        self.now = 0.0
        self.told: list[tuple[str, Loading]] = []
        self.progress = LoadProgress("model", lambda: self.now, lambda *told: self.told.append(told))

    @property
    def state(self) -> Loading:
        return self.told[-1][1]

    @property
    def sentence(self) -> str:
        return self.told[-1][0]


def test_seconds_left_follow_from_the_pace() -> None:
    """Half of it in ten seconds: another ten."""
    watched = Watched()
    watched.progress.weights(1000)
    watched.progress.stage("transformer", 4, 5)
    watched.progress.bytes(0, 1000)
    assert (watched.state.percent, watched.state.seconds_left) == (0, None)
    watched.now += 10
    watched.progress.bytes(500, 1000)
    assert watched.state == Loading(
        model="model",
        stage="transformer",
        bytes_done=500,
        bytes_total=1000,
        percent=50,
        seconds_left=10,
    )
    assert watched.sentence == (
        "model is loading: transformer (4 of 5), 50 % (0.0 of 0.0 GB), about 10 s left"
    )


def test_bytes_add_up_over_the_parts() -> None:
    """A bar that starts again with each part tells nobody when the load is over."""
    watched = Watched()
    watched.progress.weights(1000)
    percents = []
    for part, nbytes in (("text_encoder", 300), ("transformer", 600), ("vae", 100)):
        watched.progress.stage(part, 1, 3)
        for done in (0, nbytes // 2, nbytes):
            watched.progress.bytes(done, nbytes)
            percents.append(watched.state.percent)
    assert percents == [0, 15, 30, 30, 60, 90, 90, 95, 100]


def test_fetching_is_counted_apart_from_reading() -> None:
    """Two passes over the same bytes, at very different paces."""
    watched = Watched()
    watched.progress.files()
    watched.progress.bytes(400, 1000)
    watched.now += 6
    watched.progress.bytes(700, 1000)
    assert (watched.state.stage, watched.state.percent, watched.state.seconds_left) == ("files", 70, 6)
    watched.progress.weights(500)
    watched.progress.stage("vae", 1, 1)
    watched.progress.bytes(100, 500)
    assert (watched.state.percent, watched.state.seconds_left) == (20, None)


def test_nothing_counted_is_nothing_claimed() -> None:
    """Before any byte there is no percentage, rather than a wrong one."""
    watched = Watched()
    assert (watched.state.stage, watched.state.percent) == ("importing libraries", None)


def test_the_log_has_a_line_every_few_seconds(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of pieces a load; the log is read by people."""
    watched = Watched()
    with caplog.at_level(logging.INFO):
        for piece in range(1000):
            watched.now = piece * 0.1
            watched.progress.bytes(piece, 1000)
    seconds = 100
    assert len(caplog.messages) <= seconds / LOG_EVERY + 1
    assert len(caplog.messages) >= seconds / LOG_EVERY - 2
    assert len(watched.told) == 1001
