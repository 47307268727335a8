"""``SHA256SUMS`` of a checkpoint's folder: written after a download, checked whenever somebody asks.

``sha256sum --check`` reads it too.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

NAME = "SHA256SUMS"
PIECE = 16 * 2**20

Count = Callable[[int], None]  # told the bytes of each piece


def write(folder: Path, sums: Mapping[str, str]) -> None:
    """sums: hexadecimal SHA-256 by path within ``folder``."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
    unfinished = folder / f".{NAME}.part"
    unfinished.write_text("".join(lines))
    unfinished.replace(folder / NAME)


def read(folder: Path) -> dict[str, str] | None:
    """None where there is none. Raises ``ValueError`` for a line that is no sum."""
    try:
        text = (folder / NAME).read_text()
    except FileNotFoundError:
        return None
    pairs = [line.split("  ", 1) for line in text.splitlines() if line]
    if any(len(pair) != 2 or len(pair[0]) != 64 or ".." in Path(pair[1]).parts for pair in pairs):
        raise ValueError(f"{NAME} is damaged")
    return {name: digest for digest, name in pairs}


def damage(folder: Path, sums: Mapping[str, str], count: Count) -> dict[str, str]:
    """What is wrong, by path: ``missing`` or ``damaged``. Reads every file in full."""
    wrong = {}
    for name, expected in sums.items():
        try:
            found = sha256(folder / name, count)
        except FileNotFoundError:
            wrong[name] = "missing"
            continue
        if found != expected:
            wrong[name] = "damaged"
    return wrong


def sha256(path: Path, count: Count) -> str:
    return _digest(path, hashlib.sha256(), count)


def git_blob(path: Path) -> str:
    """The id by which git, and so the hub, knows a file that is not in its large-file storage."""
    start = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    return _digest(path, start, lambda n: None)


def _digest(path: Path, digest: "hashlib._Hash", count: Count) -> str:
    piece = memoryview(bytearray(PIECE))
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(piece):
            digest.update(piece[:n])
            count(n)
    return digest.hexdigest()
