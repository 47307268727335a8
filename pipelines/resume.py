"""Fetches one large file of the hub so that an interrupted try is gone on with, not begun again.

The hub's own client (2.4) drops what a process had fetched of a file when that process ends. A part is kept
here beside the finished blobs of its cache, under the checksum that it must have in the end.
"""

import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import RepoFile, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils._headers import build_hf_headers

from core.errors import CapacityError
from pipelines.hub import cache_folder, counting, explained
from pipelines.manifest import sha256
from pipelines.options import ModelOptions, Report

log = logging.getLogger(__name__)


def fetch_blob(
    repository: str,
    commit: str,
    file: RepoFile,
    digest: str,
    options: ModelOptions,
    report: Report,
    there: int,
    total: int,
) -> bool:
    """Put a file of the large-file storage into the cache, its checksum verified.

    Whether that was needed: one that is there already is left alone, unread.
    digest: its SHA-256. there: bytes of ``total`` that came before it.
    Raises ``CapacityError`` ``not_ready``.
    """
    blob = cache_folder(repository) / "blobs" / digest
    if blob.exists():
        return False
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{digest}.part")
    with explained(repository, commit), _alone(part, file.path) as handle:
        here = handle.seek(0, 2)
        if here:
            log.info("%s goes on at %.2f of %.2f GB", file.path, here / 1e9, file.size / 1e9)
        _require_room(part.parent, file.size - here)
        http_get(
            hf_hub_url(repository, file.path, revision=commit),
            handle,
            resume_size=here,
            headers=build_hf_headers(token=options.token),
            expected_size=file.size,
            displayed_filename=file.path,
            tqdm_class=counting(report, there, total),
        )
        handle.flush()
        if sha256(part, lambda n: None) != digest:
            part.unlink()
            raise CapacityError(
                "not_ready",
                f"{file.path} of {repository} arrived damaged: its SHA-256 is not the one the hub names; it "
                "was removed, so run the download again",
            )
        part.replace(blob)
        return True


@contextmanager
def _alone(part: Path, name: str) -> Iterator[BinaryIO]:
    """The part, opened to be appended to, by one process at a time."""
    with part.open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CapacityError(
                "not_ready", f"another process is fetching {name}; wait for it to end"
            ) from None
        yield handle


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CapacityError(
            "not_ready",
            f"{needed / 1e9:.1f} GB are needed and the disk has {free / 1e9:.1f} GB free; free some, or move "
            "HF_HOME",
        )
