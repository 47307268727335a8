"""Lives and deaths of the process in ``job_process``, and what must hold after each of them."""

import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.api.job_process import JOBS, result_of

ROOT = Path(__file__).resolve().parents[2]
MOST_POINTS = 800  # a life without a crash has about as many
ENDS = ("succeeded", "failed")


@dataclass
class Story:
    """What the processes of one folder have told, over all their lives."""

    folder: Path
    acknowledged: dict[str, str] = field(default_factory=dict)
    started: Counter[str] = field(default_factory=Counter)
    done: set[str] = field(default_factory=set)
    deaths: int = 0

    def hear(self, told: str) -> bool:
        """Whether it told that all is over."""
        for line in told.splitlines():
            word, *rest = line.split()
            if word == "ack":
                number, id = rest
                known = self.acknowledged.setdefault(number, id)
                assert known == id, f"job {number} was acknowledged and lost: it is a new one now"
            elif word == "start":
                assert rest[0] not in self.done, "a job was run after it had succeeded"
                self.started[rest[0]] += 1
            elif word == "done":
                assert rest[0] not in self.done, "a job succeeded twice"
                self.done.add(rest[0])
            else:
                return word == "end"
        return False

    def check_file(self, *, over: bool) -> None:
        """Read with nothing of the store's own code; this also is its first reader after a crash."""
        jobs = self._rows()
        missing = set(self.acknowledged.values()) - {id for id, *_ in jobs}
        assert not missing, "acknowledged jobs are lost"
        for id, state, attempts, code, number, data in jobs:
            expected = result_of(b"job " + number.encode())
            assert data == (expected if state == "succeeded" else None), f"{state}, with a result of {data!r}"
            assert self.started[id] <= attempts <= 3, f"{self.started[id]} runs, {attempts} attempts"
            assert state == "succeeded" or id not in self.done, "a success was taken back"
            if state == "failed":
                assert (attempts, code) == (3, "pipeline_error")
            if over:
                assert state in ENDS, f"a job is stuck {state}"
        assert not over or len(jobs) == JOBS

    def _rows(self) -> list[tuple[Any, ...]]:
        file = self.folder / "jobs.sqlite3"
        if not file.exists():  # death came before anything
            return []
        db = sqlite3.connect(file)
        try:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            if db.execute("PRAGMA user_version").fetchone() == (0,):
                return []
            return db.execute(
                "SELECT id, state, attempts, error_code, idempotency_key, data"
                " FROM job LEFT JOIN result USING (seq)"
            ).fetchall()
        finally:
            db.close()


def a_round(folder: Path, seed: int, bug: str = "sound") -> Story:
    """One to four deaths at random instants, then a life to the end."""
    chance = random.Random(seed)
    story = Story(folder)
    for _ in range(chance.choice((1, 1, 2, 4))):
        if life(story, chance, bug, mortal=True):
            break
    if life(story, chance, bug, mortal=False):
        story.check_file(over=True)
        return story
    raise AssertionError("the last process ended without a word")


def life(story: Story, chance: random.Random, bug: str, *, mortal: bool) -> bool:
    """Whether it told that all is over. Half of the deaths come from within, at a statement; half of them
    from outside, at a random time."""
    from_within = mortal and chance.random() < 0.5
    points = chance.randint(1, MOST_POINTS) if from_within else 0
    command = [sys.executable, "-m", "tests.api.job_process", str(story.folder)]
    command += [str(chance.getrandbits(32)), str(points), bug]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = b""
        if mortal and not from_within:
            if chance.random() < 0.8:  # else it may still be opening the store
                first = process.stdout.readline()
            try:
                process.wait(chance.uniform(0, 0.2))
            except subprocess.TimeoutExpired:
                process.kill()
        try:
            rest, errors = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise AssertionError("the process never ends") from None
    over = story.hear((first + rest).decode())
    if process.returncode == -signal.SIGKILL:
        story.deaths += 1
    else:
        assert process.returncode == 0, errors.decode()
    story.check_file(over=over)
    return over
