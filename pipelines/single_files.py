"""Single files of weights that rows and operators name, as ``owner/name[@revision]/path/file.safetensors``.

Importing it loads neither torch nor the hub's client.
"""

from dataclasses import dataclass
from pathlib import Path

from core.errors import CapacityError
from pipelines.options import ModelOptions, Report, Silent

SUFFIX = ".safetensors"  # nothing else is read: a pickle can run code


@dataclass(frozen=True, slots=True)
class Reference:
    """A file of a repository of the model hub. revision: commit, tag or branch; None is the newest."""

    repository: str
    revision: str | None
    file: str

    @classmethod
    def of(cls, text: str) -> "Reference | None":
        """None for what names no file of the hub: a path, ``builtin:FILE``, a file's name alone."""
        owner, _, rest = text.partition("/")
        name, _, file = rest.partition("/")
        name, _, revision = name.partition("@")
        if text.startswith(("builtin:", "~")) or not (owner and name and file):
            return None
        return cls(f"{owner}/{name}", revision or None, file)


def in_folder(text: str, options: ModelOptions) -> Path | None:
    """The file of the same name in the operator's folder of LoRAs, which comes before the hub's."""
    folder = options.lightning.folder
    if folder is None:
        return None
    path = folder / text.rpartition("/")[2]
    return path if path.is_file() else None


def locate(text: str, options: ModelOptions, report: Report | None = None) -> Path:
    """Where the file is, fetched if need be. report: told the bytes that are.

    Raises ``CapacityError`` ``not_ready``; its message says why, and leaves the remedy to the caller who
    knows what the file is for.
    """
    if options.found is not None and text in options.found.files:
        return options.found.files[text]
    if (path := in_folder(text, options)) is not None:
        return path
    reference = Reference.of(text)
    if reference is None:
        raise CapacityError(
            "not_ready",
            "it is neither in LORA_DIR nor named as owner/name/file of the model hub",
            retryable=False,
        )
    from pipelines import hub

    return hub.file(reference, options, report or Silent())
