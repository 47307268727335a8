"""The model hub: one commit of a repository brought into the cache of its client, with bytes counted.

Its refusals become sentences for the operator. Nothing of a repository is executed, and no format of
weights but safetensors is fetched.
"""

import errno
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar

import httpx2
from huggingface_hub import (
    HfApi,
    RepoFile,
    ResolvedRevision,
    constants,
    get_cached_repo_tree,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils._paths import filter_repo_objects

from core.errors import CapacityError
from pipelines.checkpoint import CHECKPOINT
from pipelines.options import ModelOptions, Report
from pipelines.single_files import Reference

log = logging.getLogger(__name__)

UNREAD = ("vae_1_0/*", "*.fp16.safetensors", "*.fp16-*.safetensors", "*.non_ema.safetensors", "*.fp16.json")


def snapshot(
    repository: str,
    revision: str | None,
    options: ModelOptions,
    report: Report,
    patterns: Iterable[str] = CHECKPOINT,
) -> Path:
    """The folder of one commit, complete. Its name is the commit's.

    What the hub does not give now, for whatever reason, is taken from the cache where it is complete.
    Raises ``CapacityError`` ``not_ready``.
    """
    if options.local_only:
        return cached(repository, revision, patterns)
    try:
        resolved = resolve(repository, revision, options)
        files = _known_tree(repository, resolved, patterns) or tree(repository, resolved, options, patterns)
        return fetched(repository, resolved, files, options, report, patterns)
    except CapacityError as refusal:
        try:
            folder = cached(repository, revision, patterns)
        except CapacityError:
            raise refusal from None
        log.warning("%s; the copy in the cache is used", refusal.message)
        return folder


def resolve(repository: str, revision: str | None, options: ModelOptions) -> ResolvedRevision:
    """The commit that a branch or tag names now."""
    with explained(repository, revision):
        return HfApi(token=options.token).resolve_revision(repository, revision=revision)


def tree(
    repository: str, revision: ResolvedRevision, options: ModelOptions, patterns: Iterable[str] = CHECKPOINT
) -> list[RepoFile]:
    """The files of a commit that are wanted, with sizes and checksums."""
    with explained(repository, revision):
        entries = HfApi(token=options.token).list_repo_tree(
            repository, recursive=True, revision=revision.resolved
        )
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return _wanted(files, patterns)


def _known_tree(repository: str, revision: ResolvedRevision, patterns: Iterable[str]) -> list[RepoFile]:
    """``tree`` as it was listed before, without checksums: a commit stays, and the hub may be down."""
    try:
        return _wanted(get_cached_repo_tree(repository, revision=revision), patterns)
    except CachedRepoTreeNotFoundError:
        return []


def _wanted(files: list[RepoFile], patterns: Iterable[str]) -> list[RepoFile]:
    return list(
        filter_repo_objects(
            files,
            allow_patterns=list(patterns),
            ignore_patterns=_ignored(patterns),
            key=lambda file: file.path,
        )
    )


def _ignored(patterns: Iterable[str]) -> list[str]:
    """A file that is asked for by its own name is wanted whatever it is called."""
    wanted = tuple(patterns)
    return [unread for unread in UNREAD if not any(fnmatch(pattern, unread) for pattern in wanted)]


def cache_folder(repository: str) -> Path:
    """Of one repository: holds blobs, refs and snapshots."""
    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{repository.replace('/', '--')}"


def fetched(
    repository: str,
    revision: ResolvedRevision,
    files: list[RepoFile],
    options: ModelOptions,
    report: Report,
    patterns: Iterable[str],
) -> Path:
    """The folder of a commit, once all ``files`` are in it. Raises ``CapacityError`` ``not_ready``."""
    folder = cache_folder(repository) / "snapshots" / revision.resolved
    there = sum(file.size for file in files if (folder / file.path).exists())
    total = sum(file.size for file in files)
    report.bytes(there, total)
    log.info("%s at commit %s, %.1f of %.1f GB to fetch", repository, revision.resolved, *_gb(there, total))
    with explained(repository, revision):
        snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=_ignored(patterns),
            token=options.token,
            tqdm_class=counting(report, there, total),
        )
    report.bytes(total, total)
    return folder


def cached(repository: str, revision: str | None, patterns: Iterable[str]) -> Path:
    """The folder of a commit that was fetched before. Raises ``CapacityError`` ``not_ready``."""
    with explained(repository, revision):
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=_ignored(patterns),
                local_files_only=True,
            )
        )
    log.info("%s at commit %s, from the cache", repository, folder.name)
    return folder


def file(reference: Reference, options: ModelOptions, report: Report) -> Path:
    """One file of a repository. What the hub does not give now is taken from the cache.

    Raises ``CapacityError`` ``not_ready``.
    """
    try:
        return _file(reference, options, report, local_only=options.local_only)
    except CapacityError as refusal:
        try:
            path = _file(reference, options, report, local_only=True)
        except CapacityError:
            raise refusal from None
        log.warning("%s; the copy in the cache is used", refusal.message)
        return path


def _file(reference: Reference, options: ModelOptions, report: Report, *, local_only: bool) -> Path:
    repository, revision = reference.repository, reference.revision
    with explained(repository, revision):
        try:
            # Resolved first, which tells at once when the hub is down; the download would try for long.
            api = HfApi(token=options.token)
            commit = revision if local_only else api.resolve_revision(repository, revision=revision)
            path = hf_hub_download(
                repository,
                reference.file,
                revision=commit,
                local_files_only=local_only,
                token=options.token,
                tqdm_class=counting(report, 0, None),
            )
        except (LocalEntryNotFoundError, RevisionResolutionError):
            raise CapacityError(
                "not_ready",
                f"{repository} is not in the local cache and cannot be fetched; unset LOCAL_ONLY and check "
                "the network",
            ) from None
        except RevisionNotFoundError:
            raise _final(f"{repository} has no revision {revision or 'main'}; check its name") from None
        except (EntryNotFoundError, HFValidationError):
            raise _final(f"{repository} has no such file; check its name") from None
    return Path(path)


def _gb(there: int, total: int) -> tuple[float, float]:
    return (total - there) / 1e9, total / 1e9


def counting(report: Report, there: int, total: int | None) -> Any:
    """A class for the hub client's progress bars that shows nothing and tells ``report`` the bytes.

    The client makes one bar for bytes received, one for bytes written and one for files, and fills them
    from its own threads. there: bytes of ``total`` that were here before. total: None where only the client
    knows.
    """
    bytewise: list[Any] = []

    class Counter:
        format_dict: ClassVar[dict[str, Any]] = {"rate": None}

        def __init__(self, *_: Any, unit: str = "it", **given: Any) -> None:
            self.n, self.total = given.get("initial", 0), given.get("total")
            if unit == "B":
                bytewise.append(self)

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self in bytewise:
                # Both count every byte; one leaves out what was resumed, the other what was compressed.
                whole = max(bar.total or 0 for bar in bytewise) if total is None else total
                report.bytes(min(there + int(max(bar.n for bar in bytewise)), whole), whole)

        def __enter__(self) -> "Counter":
            return self

        def __exit__(self, *_: object) -> None: ...

        def close(self, *_: Any, **__: Any) -> None: ...

        refresh = set_description = set_description_str = set_postfix_str = close

    return Counter


@contextmanager
def explained(repository: str, revision: str | None) -> Iterator[None]:
    """Turns what the hub's client raises into ``CapacityError`` ``not_ready`` with the remedy."""
    try:
        yield
    except GatedRepoError:
        raise _final(
            f"{repository} is gated; accept its licence on its page at the hub, then set HF_TOKEN to a token "
            "of that account"
        ) from None
    except RepositoryNotFoundError:
        raise _final(
            f"the hub knows no {repository}, or shows it to others only; check the name and HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise _final(
            f"{repository} has no revision {revision or 'main'}; check MODEL_REVISION, or name a commit"
        ) from None
    except (LocalEntryNotFoundError, RevisionResolutionError, OfflineModeIsEnabled):
        raise CapacityError(
            "not_ready",
            f"{repository} is not, or not whole, in the local cache and cannot be fetched; unset LOCAL_ONLY "
            "and check the network, or point MODEL_DIR at a copy",
        ) from None
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise _final(f"the hub refuses HF_TOKEN for {repository}; renew the token") from None
        raise CapacityError(
            "not_ready", f"the hub answers {error.response.status_code} for {repository}; try later"
        ) from error
    except httpx2.HTTPError as error:
        raise CapacityError(
            "not_ready",
            f"{repository} could not be fetched ({type(error).__name__}); check the network and HF_ENDPOINT",
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CapacityError(
                "not_ready",
                f"the disk is too small for {repository}; free some, or move HF_HOME",
            ) from error
        raise CapacityError(
            "not_ready", f"{repository} could not be fetched whole; try again, or check HF_HOME"
        ) from error


def _final(message: str) -> CapacityError:
    return CapacityError("not_ready", message, retryable=False)
