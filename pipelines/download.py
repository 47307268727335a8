"""``handler.py download``: models fetched ahead, into an image or onto a volume, and checked byte by byte.

Importing it loads neither torch nor the hub's client.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from core.errors import CapacityError, RequestError
from core.spec import PipelineSpec
from pipelines import manifest
from pipelines.beside import named
from pipelines.checkpoint import find_checkpoint, index_of, patterns_of
from pipelines.options import ModelOptions
from pipelines.registry import catalog
from pipelines.shards import survey
from pipelines.single_files import Reference, in_folder

if TYPE_CHECKING:
    from huggingface_hub import RepoFile

_QUIET_INTERVAL = 10.0  # seconds between lines where nobody watches: the log of an image build


@dataclass(frozen=True, slots=True)
class Source:
    """Files of one repository. patterns: which."""

    repository: str
    revision: str | None
    patterns: tuple[str, ...]

    @classmethod
    def of(cls, reference: Reference) -> "Source":
        return cls(reference.repository, reference.revision, (escape(reference.file),))

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


def files_of(spec: PipelineSpec, options: ModelOptions) -> list[Source]:
    """All that a load of the row takes from the hub: its checkpoint, what it needs beside it, users' LoRAs.

    Nothing of it that is here: built in, in MODEL_DIR or in LORA_DIR.
    """
    here = options.model_dir is not None or spec.source.startswith("builtin:")
    sources = [] if here else [Source(*spec.source_at(options.revision), patterns_of(spec))]
    takes_loras = bool(spec.adapters) and spec.adapters_refused is None
    for text in dict.fromkeys([*named(spec), *(options.adapters.values() if takes_loras else ())]):
        reference = Reference.of(text)
        if reference is not None and in_folder(text, options) is None:
            sources.append(Source.of(reference))
    return sources


def run(
    names: Sequence[str],
    default: str,
    row: Mapping[str, Any],
    options: ModelOptions,
    *,
    verify: bool = False,
    say: Callable[[str], None] = print,
) -> int:
    """Fetch, or with ``verify`` check again, the models of these names. 0, or 1 when one failed.

    default, row: the model and the wishes of the operator, for ``pipelines.registry.catalog``.
    """
    try:
        known = catalog(default, **dict(row) | {"allowed": frozenset(names)})
    except RequestError as error:
        say(error.message)
        return 2
    failed = 0
    for spec in dict.fromkeys(known.get(name) for name in names):
        own = options if spec is known.default else options.for_others()
        try:
            for line in check(spec, own) if verify else fetch(spec, own):
                say(line)
        except CapacityError as error:
            say(f"{spec.name}: {error.message}")
            failed += 1
        except KeyboardInterrupt:
            say("interrupted; the same command goes on from here")
            return 130
    return 1 if failed else 0


def fetch(spec: PipelineSpec, options: ModelOptions) -> Iterator[str]:
    """Everything of ``files_of``, verified; a line for each source. Raises ``CapacityError``."""
    if options.model_dir is not None or spec.source.startswith("builtin:"):
        yield f"{spec.name}: {_here(spec, options)}"
    sources = files_of(spec, options)
    if sources and options.local_only:
        raise CapacityError("not_ready", "LOCAL_ONLY=1 forbids fetching; unset it for this command")
    for source in sources:
        yield f"{spec.name}: {_fetch(source, options)}"


def check(spec: PipelineSpec, options: ModelOptions) -> Iterator[str]:
    """Read what was fetched again, against its checksums. Raises ``CapacityError`` naming what is wrong."""
    from pipelines import hub

    if options.model_dir is not None:
        remedy = "copy it from a checkpoint that this command has fetched"
        yield f"{spec.name}: {_check(options.model_dir, 'MODEL_DIR', remedy)}"
    elif spec.source.startswith("builtin:"):
        yield f"{spec.name}: in this repository"
    for source in files_of(spec, options):
        folder = hub.cached(source.repository, source.revision, source.patterns)
        yield f"{spec.name}: {_check(folder, str(source), 'run the download once')}"


def _here(spec: PipelineSpec, options: ModelOptions) -> str:
    """A checkpoint that is not the hub's, as a load would take it."""
    folder = find_checkpoint(spec, options)
    index_of(folder, spec)
    total = sum(part.nbytes for part in survey(folder).values())
    what = "built" if options.model_dir is None else "MODEL_DIR is used as it is"
    return f"{what} at {folder}, {total / 1e9:.2f} GB"


def _fetch(source: Source, options: ModelOptions) -> str:
    from pipelines import hub
    from pipelines.resume import fetch_blob

    patterns = source.patterns
    revision = hub.resolve(source.repository, source.revision, options)
    files = hub.tree(source.repository, revision, options, patterns)
    if not files:
        raise CapacityError("not_ready", f"{source} holds none of the files asked for", retryable=False)
    total, there = sum(file.size for file in files), 0
    sums: dict[str, str] = {}
    with _Bar(source.repository, total) as bar:
        for file, digest in [(file, file.lfs.sha256) for file in files if file.lfs]:
            if fetch_blob(source.repository, revision.resolved, file, digest, options, bar, there, total):
                sums[file.path] = digest
            there += file.size
            bar.bytes(there, total)
        folder = hub.fetched(source.repository, revision, files, options, bar, patterns)
    unread = [file for file in files if file.path not in sums]
    with _Bar("checksums", sum(file.size for file in unread)) as bar:
        sums |= _sums(folder, unread, bar)
    manifest.write(folder, (manifest.read(folder) or {}) | sums)
    return f"{source} at commit {revision.resolved}, {total / 1e9:.2f} GB, verified, in {folder}"


def _sums(folder: Path, files: "Sequence[RepoFile]", bar: "_Bar") -> dict[str, str]:
    """The checksums of files that are what the hub says; one that is not is removed, and raised."""
    sums = {}
    for file in files:
        path = folder / file.path
        sums[file.path] = manifest.sha256(path, bar.advance)
        good = sums[file.path] == file.lfs.sha256 if file.lfs else manifest.git_blob(path) == file.blob_id
        if not good:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise CapacityError(
                "not_ready",
                f"{file.path} is damaged: its checksum is not the hub's; it was removed, so run the download "
                "again",
            )
    return sums


def _check(folder: Path, name: str, remedy: str) -> str:
    try:
        sums = manifest.read(folder)
    except ValueError as error:
        raise CapacityError("not_ready", f"{name}: {error}; run the download again") from None
    if not sums:
        raise CapacityError("not_ready", f"{name} has no {manifest.NAME} to check it against; {remedy}")
    total = sum((folder / file).stat().st_size for file in sums if (folder / file).exists())
    with _Bar("checksums", total) as bar:
        wrong = manifest.damage(folder, sums, bar.advance)
    if wrong:
        for file, what in wrong.items():
            if what == "damaged":
                _forget(folder / file)
        listed = ", ".join(f"{file} is {what}" for file, what in wrong.items())
        raise CapacityError("not_ready", f"{name}: {listed}; run the download again", retryable=False)
    return f"{name}: {len(sums)} files, {total / 1e9:.2f} GB, all as they were fetched"


def _forget(path: Path) -> None:
    """Of the hub's cache, where the next download would take it for good; a plain file is left alone."""
    if path.is_symlink():
        path.resolve().unlink(missing_ok=True)
        path.unlink()


class _Bar:
    """The ``Report`` of a download: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self, title: str, total: int) -> None:
        interval = 0.1 if sys.stderr.isatty() else _QUIET_INTERVAL
        self._bar = tqdm(
            total=total, desc=title, unit="B", unit_scale=True, mininterval=interval, dynamic_ncols=True
        )

    def stage(self, name: str, number: int, total: int) -> None:
        self._bar.set_description(name)

    def bytes(self, done: int, total: int) -> None:
        self.advance(done - int(self._bar.n))

    def advance(self, n: int) -> None:
        self._bar.update(n)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
