"""One thread writes; what waits together shares a commit, and nothing else."""

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import pytest

from api.job_file import JobFile
from api.job_writer import JobWriter
from core.errors import CapacityError, RequestError


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    file = JobFile(tmp_path)
    yield file.connect()
    file.close()


@pytest.fixture
def writer(db: sqlite3.Connection) -> Iterator[JobWriter]:
    writer = JobWriter(db)
    yield writer
    writer.close()


def put(name: str, size: int = 10) -> Callable[[sqlite3.Connection], str]:
    def operation(db: sqlite3.Connection) -> str:
        db.execute("INSERT INTO gone VALUES (?, ?, 0)", (name, "x" * size))
        return name

    return operation


def kept(writer: JobWriter) -> list[str]:
    rows = writer.submit(lambda db: db.execute("SELECT id FROM gone ORDER BY id").fetchall())
    return [id for (id,) in rows.result(5)]


class Gate:
    """An operation that holds the writer, so that others gather behind it."""

    def __init__(self, writer: JobWriter) -> None:
        self._reached, self._open = threading.Event(), threading.Event()
        self.passed = writer.submit(self)
        assert self._reached.wait(5)

    def __call__(self, db: sqlite3.Connection) -> None:
        self._reached.set()
        assert self._open.wait(5)

    def open(self) -> None:
        self._open.set()


def behind_a_gate(writer: JobWriter, *operations: Callable[[sqlite3.Connection], Any]) -> list[Future[Any]]:
    gate = Gate(writer)
    futures = [writer.submit(operation) for operation in operations]
    gate.open()
    assert not wait(futures, 5).not_done
    return futures


def test_what_waits_together_shares_a_commit(writer: JobWriter) -> None:
    """A sync of the disk takes milliseconds, whether for one job or for a hundred."""
    before = writer.commits
    futures = behind_a_gate(writer, *(put(f"{n:03}") for n in range(200)))
    assert [future.result() for future in futures] == [f"{n:03}" for n in range(200)]
    assert writer.commits - before == 2  # the gate's own, and that of all others
    assert len(kept(writer)) == 200


def test_a_flood_is_cut_into_commits_of_bounded_size(writer: JobWriter) -> None:
    """The first of thousands must not wait for the last."""
    before = writer.commits
    behind_a_gate(writer, *(put(f"{n:03}") for n in range(600)))
    assert writer.commits - before == 1 + 3


def test_an_answer_comes_after_its_commit(db: sqlite3.Connection, tmp_path: Path) -> None:
    """Whoever hears of a job can read it, over any connection."""
    writer = JobWriter(db)
    seen: Future[int] = Future()

    def look(future: Future[str]) -> None:  # called by the writer, the moment it answers
        connection = sqlite3.connect(tmp_path / "jobs.sqlite3")
        (number,) = connection.execute("SELECT count(*) FROM gone").fetchone()
        connection.close()
        seen.set_result(number)

    gate = Gate(writer)
    writer.submit(put("a")).add_done_callback(look)
    gate.open()
    assert seen.result(5) == 1
    writer.close()


def test_an_operation_that_raises_changes_nothing_and_fails_alone(
    writer: JobWriter, caplog: pytest.LogCaptureFixture
) -> None:
    """Refusals are usual under load, and share commits with jobs that are accepted."""

    def refuse(db: sqlite3.Connection) -> None:
        put("never")(db)
        raise RequestError("conflict", "no")

    def stumble(db: sqlite3.Connection) -> None:
        put("never")(db)
        raise ZeroDivisionError

    before = writer.commits
    first, refused, stumbled, last = behind_a_gate(writer, put("a"), refuse, stumble, put("b"))
    assert isinstance(refused.exception(), RequestError)
    assert isinstance(stumbled.exception(), ZeroDivisionError)
    assert (first.result(), last.result()) == ("a", "b")
    assert writer.commits - before == 2
    assert kept(writer) == ["a", "b"]
    assert "nobody foresaw" in caplog.text


def test_one_that_does_not_fit_takes_no_others_along(db: sqlite3.Connection) -> None:
    """A full disk: small changes, ends of jobs among them, still get through."""
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages + 5}")
    writer = JobWriter(db)
    small, large, other = behind_a_gate(writer, put("a"), put("b", 100_000), put("c"))
    error = large.exception()
    assert isinstance(error, CapacityError)
    assert error.code == "storage_full"
    assert (small.result(), other.result()) == ("a", "c")
    assert kept(writer) == ["a", "c"]
    assert writer.submit(put("d")).result(5) == "d"  # the writer lives
    writer.close()


def test_a_file_that_breaks_is_an_answer_too(
    db: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for ever because of a disk, and nobody is told what SQLite says."""
    db.execute("PRAGMA writable_schema = ON")
    db.execute("UPDATE sqlite_master SET rootpage = 99999 WHERE name = 'gone'")
    db.execute("PRAGMA writable_schema = RESET")
    writer = JobWriter(db)
    error = writer.submit(put("a")).exception(5)
    assert isinstance(error, CapacityError)
    assert error.code == "not_ready"
    assert "malformed" not in error.message
    assert "malformed" in caplog.text
    writer.close()


def test_whatever_happens_everyone_is_answered(writer: JobWriter, caplog: pytest.LogCaptureFixture) -> None:
    """A fault of ours must not leave callers waiting, nor end the thread that all others need."""

    def end(db: sqlite3.Connection) -> None:
        raise SystemExit

    neighbour, fault = behind_a_gate(writer, put("a"), end)
    assert isinstance(neighbour.exception(), CapacityError)
    assert isinstance(fault.exception(), CapacityError)
    assert "writer failed" in caplog.text
    assert writer.submit(put("b")).result(5) == "b"
    assert kept(writer) == ["b"]


def test_what_was_cancelled_in_time_is_not_carried_out(writer: JobWriter) -> None:
    """Its caller has gone; nobody would hear the acknowledgement."""
    gate = Gate(writer)
    dropped, other = writer.submit(put("a")), writer.submit(put("b"))
    assert dropped.cancel()
    gate.open()
    other.result(5)
    assert kept(writer) == ["b"]


def test_closing_carries_out_what_was_submitted(db: sqlite3.Connection) -> None:
    """And refuses what comes later, instead of leaving it without an answer."""
    writer = JobWriter(db)
    gate = Gate(writer)
    earlier = [writer.submit(put(name)) for name in "ab"]
    closing = threading.Thread(target=writer.close)
    closing.start()
    gate.open()
    closing.join(5)
    assert [future.result(0) for future in earlier] == ["a", "b"]
    error = writer.submit(put("c")).exception(0)
    assert isinstance(error, CapacityError)
    assert error.code == "shutting_down"
    writer.close()


def test_the_log_is_copied_into_the_file_from_time_to_time(
    writer: JobWriter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It would grow for ever, and make every start slower."""
    caplog.set_level(logging.WARNING)
    megabyte = 2**20
    for n in range(40):
        writer.submit(put(f"{n:02}", megabyte), megabyte).result(5)
    assert (tmp_path / "jobs.sqlite3-wal").stat().st_size < 10 * megabyte
    assert (tmp_path / "jobs.sqlite3").stat().st_size > 30 * megabyte
    assert caplog.text == ""
