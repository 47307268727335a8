"""Finished pictures as files, kept for a while. It knows no HTTP but the path they are fetched by."""

import asyncio
import errno
import os
import re
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from core.errors import CapacityError

T = TypeVar("T")

MEDIA_TYPES: Final = {"png": "image/png", "jpeg": "image/jpeg", "jpg": "image/jpeg", "webp": "image/webp"}

_NAME: Final = re.compile(r"im_[0-9a-f]{8}\.(png|jpeg|jpg|webp)")
_PART: Final = ".part"  # of a file that is still being written
_SWEEP_SECONDS: Final = 600.0
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, kw_only=True, slots=True)
class FileOptions:
    """folder: made at the first file. base_url: before ``/files/…`` in absolute addresses.

    keep_bytes: of all files; the oldest leave first.
    """

    folder: Path = Path("data")
    base_url: str = ""
    keep_seconds: float = 24 * 3600.0
    keep_bytes: int = 10**10


class FileStore:
    """Use from one event loop; every touch of the disk happens in a thread.

    A file is there in full or not at all, also after the process was killed. ``clock`` tells wall time,
    which alone outlives a process.
    """

    def __init__(self, options: FileOptions, clock: Callable[[], float] = time.time) -> None:
        self._options = options
        self._folder = options.folder / "images"
        self._clock = clock
        self._held: int | None = None  # bytes; None until the folder has been looked through
        self._swept = 0.0
        self._writing = asyncio.Lock()
        # Of its own: a slow disk must not hold up whatever else runs in the loop's threads.
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="files")

    async def put(self, data: bytes, extension: str) -> str:
        """Keep a file. Its id: ``im_`` and 8 hex digits.

        Raises ``ValueError`` for an extension that is none of ``MEDIA_TYPES`` and ``CapacityError``
        ``storage_full``.
        """
        if extension not in MEDIA_TYPES:
            raise ValueError(f"files of kind {extension!r} are not served")
        try:
            async with self._writing:  # one at a time, so that all that was counted is there to be counted
                await self._make_room(len(data))
                return await self._in_thread(lambda: self._write(data, extension))
        except OSError as error:
            if error.errno in _FULL:
                raise CapacityError(
                    "storage_full",
                    "the server's disk has no room for another picture; ask for b64_json, or free some",
                ) from None
            raise

    def path(self, file_id: str, extension: str) -> str:
        """Where ``put`` made a file fetchable, from the server's root."""
        return f"/files/{file_id}.{extension}"

    def url(self, file_id: str, extension: str, origin: str) -> str:
        """The same as an absolute address. origin: ``scheme://host`` by which the caller reached us."""
        return (self._options.base_url or origin).rstrip("/") + self.path(file_id, extension)

    async def get(self, name: str) -> bytes | None:
        """Content of a file by the last part of its path; None for one that is not, or no longer, kept."""
        return await self._in_thread(lambda: self._read(name)) if _NAME.fullmatch(name) else None

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def _make_room(self, size: int) -> None:
        held = self._held
        late = self._clock() - self._swept > _SWEEP_SECONDS
        if held is None or late or held + size > self._options.keep_bytes:
            held = await self._in_thread(lambda: self._sweep(self._options.keep_bytes - size))
            self._swept = self._clock()
        self._held = held + size

    def _sweep(self, room: int) -> int:
        """Delete what is too old, then the oldest until the rest fits ``room``; answers bytes left."""
        self._folder.mkdir(parents=True, exist_ok=True)
        oldest = self._clock() - self._options.keep_seconds
        kept: list[tuple[float, int, Path]] = []
        for entry in os.scandir(self._folder):
            if not (_NAME.fullmatch(entry.name) or entry.name.endswith(_PART)):
                continue  # somebody else's
            with suppress(FileNotFoundError):
                seen = entry.stat()
                if seen.st_mtime < oldest:
                    os.unlink(entry.path)
                else:
                    kept.append((seen.st_mtime, seen.st_size, Path(entry.path)))
        held = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if held <= room:
                break
            path.unlink(missing_ok=True)
            held -= size
        return held

    def _write(self, data: bytes, extension: str) -> str:
        while True:
            file_id = f"im_{secrets.token_hex(4)}"
            place = self._folder / f"{file_id}.{extension}"
            if not place.exists():
                break
        part = place.with_name(f"{place.name}.{secrets.token_hex(4)}{_PART}")
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(data)
            now = self._clock()
            os.utime(part, (now, now))
            os.replace(part, place)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        return file_id

    def _read(self, name: str) -> bytes | None:
        try:
            with open(self._folder / name, "rb") as file:
                if os.fstat(file.fileno()).st_mtime < self._clock() - self._options.keep_seconds:
                    return None
                return file.read()
        except OSError:
            return None
