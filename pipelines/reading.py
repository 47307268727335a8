"""Brings the weights of one part from the disk into the page cache, counting bytes.

Whatever then reads the files finds them in memory, so that progress can be told of a read that the
libraries do in one silent call.
"""

import os
from pathlib import Path

from core.errors import CapacityError
from pipelines.options import Report
from pipelines.shards import weight_files

PIECE = 16 * 2**20
MOST_OF_MEMORY = 0.8  # what is larger would push its own beginning out again before it is used


def read_ahead(part: Path, report: Report) -> None:
    """part: a checkpoint's folder of one component, or its one file; what it is is checked first.

    Raises ``CapacityError`` ``not_ready`` when a file is missing or damaged, or there is none.
    """
    files = [part] if part.is_file() else weight_files(part)
    if not files:
        raise CapacityError(
            "not_ready",
            f"{part.name} holds no safetensors weights, and nothing else is read; use a checkpoint with them",
            retryable=False,
        )
    total = sum(path.stat().st_size for path in files)
    report.bytes(0, total)
    if total > MOST_OF_MEMORY * _available_memory():
        return
    done = 0
    with open(os.devnull, "wb", buffering=0) as nowhere:
        for path in files:
            done = _through(path, nowhere.fileno(), done, total, report)


def _through(path: Path, nowhere: int, done: int, total: int, report: Report) -> int:
    with path.open("rb", buffering=0) as file:
        size, offset = os.fstat(file.fileno()).st_size, 0
        while offset < size:
            try:
                # To the null device the kernel hands pages over without copying them.
                moved = os.sendfile(nowhere, file.fileno(), offset, PIECE)
            except OSError:
                break  # a file system without it, or a bad disk: whoever reads the file in earnest will tell
            if moved == 0:
                break
            offset += moved
            report.bytes(done + offset, total)
    return done + size


def _available_memory() -> float:
    """Bytes that can be had without swapping; unlimited where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return float("inf")
