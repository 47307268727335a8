"""The store's file: one process, one user, one schema; whatever else is there is refused with a remedy."""

import os
import sqlite3
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from api import job_file
from api.job_file import JobFile, UnusableStore
from api.job_store import JobStore
from tests.api.jobs import table

ROOT = Path(__file__).resolve().parents[2]


def why_not(folder: Path) -> str:
    with pytest.raises(UnusableStore) as caught:
        JobStore(folder).close()
    message = str(caught.value)
    assert f"DATA_DIR={folder}" in message
    return message


def test_its_files_are_for_one_user_alone(tmp_path: Path) -> None:
    """They hold every caller's prompts and pictures; the log as well as the file."""
    (tmp_path / "jobs.sqlite3").touch(0o644)
    with table(tmp_path / "new") as db, table(tmp_path) as old:
        for connection in (db, old):
            connection.execute("INSERT INTO gone VALUES ('a', 'b', 0)")
        files = [path for folder in (tmp_path, tmp_path / "new") for path in folder.glob("jobs.*")]
        assert {path.name for path in files} == {
            "jobs.lock",
            *(f"jobs.sqlite3{x}" for x in ("", "-wal", "-shm")),
        }
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_a_commit_reaches_the_disk_before_it_is_acknowledged(tmp_path: Path) -> None:
    """WAL with synchronous=FULL syncs the log at every commit; NORMAL would at checkpoints only."""
    file = JobFile(tmp_path)
    db = file.connect()
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert db.execute("PRAGMA foreign_keys").fetchone() == (1,)
    db.close()
    file.close()


def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    """It would take the first one's running jobs for those of a dead process, and run them again."""
    script = (
        f"from pathlib import Path; from api.job_store import JobStore; s = JobStore(Path({str(tmp_path)!r}))"
    )
    script += "; print('open', flush=True); input()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"open\n"
        assert "in use by another process" in why_not(tmp_path)
        first.kill()
        first.wait()
    JobStore(tmp_path).close()


def test_a_store_that_was_not_opened_holds_no_lock(tmp_path: Path) -> None:
    """The operator mends the file and starts again, maybe in the same process."""
    (tmp_path / "jobs.sqlite3").write_bytes(b"no database" * 1000)
    why_not(tmp_path)
    (tmp_path / "jobs.sqlite3").unlink()
    JobStore(tmp_path).close()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """A downgrade must not guess what new columns mean."""
    with table(tmp_path) as db:
        db.execute("PRAGMA user_version = 99")
    assert "version 99" in why_not(tmp_path)


def test_another_programs_file_is_left_alone(tmp_path: Path) -> None:
    """DATA_DIR may point into somebody else's folder."""
    db = sqlite3.connect(tmp_path / "jobs.sqlite3")
    db.execute("CREATE TABLE job (id)")
    db.close()
    before = (tmp_path / "jobs.sqlite3").read_bytes()
    assert "another program's" in why_not(tmp_path)
    assert (tmp_path / "jobs.sqlite3").read_bytes() == before


class Grown(JobFile):
    """The program after its next release."""

    migrations = (*job_file.MIGRATIONS, ("ALTER TABLE job ADD COLUMN mood TEXT",))


class Stumbling(JobFile):
    migrations = (*job_file.MIGRATIONS, ("ALTER TABLE job ADD COLUMN mood TEXT", "ALTER TABLE absent ADD x"))


def test_an_older_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    """With its jobs in it, and whole or not at all."""
    with table(tmp_path) as db:
        db.execute("INSERT INTO gone VALUES ('kept', 'ann', 0)")
    stumbling = Stumbling(tmp_path)
    with pytest.raises(UnusableStore):
        stumbling.connect()
    stumbling.close()
    file = Grown(tmp_path)
    db = file.connect()
    assert db.execute("PRAGMA user_version").fetchone() == (2,)
    assert db.execute("SELECT mood FROM job").fetchall() == []
    assert db.execute("SELECT id FROM gone").fetchall() == [("kept",)]
    db.close()
    file.close()


@pytest.mark.parametrize("at", [0, 2000, 5000])
def test_a_damaged_file_is_named_as_such(at: int, tmp_path: Path) -> None:
    """In its header, in its schema, in its tables: found at the start, not by the first caller."""
    JobStore(tmp_path).close()
    with (tmp_path / "jobs.sqlite3").open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 8192)
    assert "is damaged" in why_not(tmp_path)


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    """Mounted read-only, or another user's. Root may write anywhere, so this is tried as nobody."""
    script = f"""
        import os
        from pathlib import Path
        from api.job_file import UnusableStore
        from api.job_store import JobStore
        os.chmod({str(tmp_path)!r}, 0o555)
        for folder in Path({str(tmp_path)!r}).parents:
            if folder.stat().st_uid == os.geteuid() and folder.stat().st_mode & 0o777 == 0o700:
                folder.chmod(0o711)
        if os.geteuid() == 0:
            os.seteuid(65534)
        for folder in (Path({str(tmp_path)!r}), Path({str(tmp_path / "inside")!r})):
            try:
                JobStore(folder)
            except UnusableStore as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    tmp_path.chmod(0o700)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert all("DATA_DIR=" in line and "cannot be written (Permission denied)" in line for line in lines)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    """A usual slip in a volume's path."""
    (tmp_path / "data").touch()
    assert "cannot be written" in why_not(tmp_path / "data")
    assert os.listdir(tmp_path) == ["data"]
