"""Pictures kept as files: fetched by exact name for a while, within a bound of disk, and never half."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from api.files import FileOptions, FileStore
from core.errors import CapacityError
from tests.api.serving import png, serving
from tests.fakes import Clock


class FullDisk(FileStore):
    """A store on a disk without room."""

    def _write(self, data: bytes, extension: str) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")


def store(folder: Path, clock: Clock, keep_bytes: int = 10_000) -> FileStore:
    return FileStore(FileOptions(folder=folder, keep_seconds=60, keep_bytes=keep_bytes), clock)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.joinpath("images").iterdir()}


def test_a_kept_file_is_fetched_over_http_by_get_and_head(tmp_path: Path) -> None:
    """Public, never sniffed and cached for good: its name is given to no other picture."""
    with serving(files=FileOptions(folder=tmp_path)) as served:
        picture = png()
        file_id = asyncio.run(FileStore(FileOptions(folder=tmp_path)).put(picture, "png"))
        path = f"/files/{file_id}.png"
        answer = served.client.get(path)
        assert (answer.status, answer.body) == (200, picture)
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "immutable" in answer.headers["cache-control"]
        head = served.client.request("HEAD", path)
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(picture)))


@pytest.mark.parametrize(
    "name",
    [
        "im_00000000.png",
        "im_00000000.svg",
        "im_0000000.png",
        "IM_00000000.PNG",
        "..%2Fsecret.png",
        "%2e%2e",
        "im_00000000.png%00",
        "im_00000000.png.12345678.part",
        "im_00000000.png%0a",
        "x" * 300,
    ],
)
def test_other_names_are_not_found(name: str, tmp_path: Path) -> None:
    """Only what a store could have made is looked for on the disk at all."""
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "images" / "im_00000000.svg").write_bytes(b"secret")
    (tmp_path / "images" / "im_00000000.png.12345678.part").write_bytes(b"secret")
    with serving(files=FileOptions(folder=tmp_path)) as served:
        answer = served.client.get(f"/files/{name}")
    assert answer.status == 404
    assert answer.json()["code"] == "not_found"
    assert b"secret" not in answer.body


def test_nothing_is_made_before_the_first_file(tmp_path: Path) -> None:
    """A server that answers with base64 alone needs no place to write."""
    folder = tmp_path / "deep" / "data"
    files = store(folder, Clock())
    assert asyncio.run(files.get("im_00000000.png")) is None
    assert not folder.exists()
    file_id = asyncio.run(files.put(b"picture", "webp"))
    assert names(folder) == {f"{file_id}.webp"}
    assert files.path(file_id, "webp") == f"/files/{file_id}.webp"
    assert files.url(file_id, "webp", "http://here/") == f"http://here/files/{file_id}.webp"


def test_the_operators_address_wins_over_the_callers(tmp_path: Path) -> None:
    """Behind a proxy the address that reached this process is of no use to anybody."""
    files = FileStore(FileOptions(folder=tmp_path, base_url="https://pictures.example/"))
    assert files.url("im_12345678", "png", "http://10.0.0.1") == (
        "https://pictures.example/files/im_12345678.png"
    )


def test_an_old_file_is_gone_also_before_it_is_deleted(tmp_path: Path) -> None:
    """Its time is over for callers at once; the disk gets its room at the next sweep."""
    clock = Clock()
    files = store(tmp_path, clock)

    async def run() -> None:
        first = await files.put(b"old", "png")
        assert await files.get(f"{first}.png") == b"old"
        clock.advance(61)
        assert await files.get(f"{first}.png") is None
        clock.advance(600)
        second = await files.put(b"new", "png")
        assert names(tmp_path) == {f"{second}.png"}

    asyncio.run(run())


def test_the_oldest_leave_when_the_room_is_used_up(tmp_path: Path) -> None:
    """Also files of an earlier process; the one just made always stays, and foreign files are left alone."""
    clock = Clock()

    async def run() -> None:
        made = []
        for at in range(6):
            clock.advance(1)
            # A new store each time: what is there counts, not what this process remembers.
            made.append(await store(tmp_path, clock, keep_bytes=300).put(bytes([at]) * 100, "png"))
        assert names(tmp_path) == {f"{file_id}.png" for file_id in made[-3:]} | {"notes.txt"}
        huge = await store(tmp_path, clock, keep_bytes=300).put(bytes(1000), "png")
        assert names(tmp_path) == {f"{huge}.png", "notes.txt"}

    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "notes.txt").write_bytes(bytes(1000))
    asyncio.run(run())


def test_many_at_once_stay_within_the_bound(tmp_path: Path) -> None:
    """A burst must not slip past the count."""

    async def run() -> None:
        files = store(tmp_path, Clock(), keep_bytes=500)
        ids = await asyncio.gather(*(files.put(bytes(100), "png") for _ in range(40)))
        assert len(set(ids)) == 40
        await files.put(bytes(100), "png")

    asyncio.run(run())
    assert len(names(tmp_path)) <= 5


def test_what_a_killed_process_left_half_written_is_swept_away(tmp_path: Path) -> None:
    """It can never be fetched, so it must not take room for ever."""
    clock = Clock()
    left = tmp_path / "images" / "im_00000000.png.00000000.part"
    left.parent.mkdir()
    left.write_bytes(b"half")
    os.utime(left, (clock.now - 61, clock.now - 61))
    asyncio.run(store(tmp_path, clock).put(b"whole", "png"))
    assert not left.exists()


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    """507 for the caller, who may still ask for the bytes themselves."""
    with pytest.raises(CapacityError, match="b64_json") as caught:
        asyncio.run(FullDisk(FileOptions(folder=tmp_path)).put(b"x", "png"))
    assert caught.value.code == "storage_full"


def test_a_kind_that_is_not_served_is_refused(tmp_path: Path) -> None:
    """A programming fault, found before anything is written."""
    with pytest.raises(ValueError, match="svg"):
        asyncio.run(store(tmp_path, Clock()).put(b"<svg/>", "svg"))
    assert not (tmp_path / "images").exists()
