"""Where the picture goes: a file that is there in full or not at all, or standard output."""

import itertools
import os
import re
import sys
import tempfile
from pathlib import Path

from command.failure import FAILED, WRONG, Failure


def check(output: str | None) -> None:
    """Before minutes of work: whether something can be put there. Raises ``Failure``."""
    if output == "-":
        if sys.stdout.isatty():
            raise Failure("--output -: standard output is a terminal; pipe it or name a file", WRONG)
        return
    path = Path(output or "picture.png")
    if path.is_dir():
        raise Failure(f"--output: {output} is a folder; name a file in it", WRONG)
    if not path.parent.is_dir():
        raise Failure(f"--output: there is no folder {path.parent}; make it first", WRONG)
    if not os.access(path.parent, os.W_OK):
        raise Failure(f"--output: the folder {path.parent} cannot be written to", WRONG)


def save(data: bytes, output: str | None, stem: str, image_format: str) -> str:
    """Where it went: a path, or "standard output". Without ``output``, a free name made of ``stem``."""
    if output == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return "standard output"
    try:
        return _replace(Path(output), data) if output else _create(stem, image_format, data)
    except OSError as error:
        raise Failure(f"the picture cannot be saved ({error.strerror}); see --output", FAILED) from None


def _replace(path: Path, data: bytes) -> str:
    if path.exists() and not path.is_file():  # a device or a pipe takes what it is given
        path.write_bytes(data)
        return str(path)
    target = path.resolve()  # a link keeps pointing where it did
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        os.chmod(name, mode)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    return str(path)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _create(stem: str, image_format: str, data: bytes) -> str:
    suffix = ".jpg" if image_format == "jpeg" else f".{image_format}"
    for number in itertools.count(1):
        path = Path(f"{stem}-{number}{suffix}" if number > 1 else f"{stem}{suffix}")
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            continue
        return str(path)
    raise AssertionError("numbers do not end")


def stem_of(prompt: str, pictures: tuple[str, ...]) -> str:
    """Of a file's name, when none was given: the first picture's, or the first words of the prompt."""
    if pictures and pictures[0] != "-" and "://" not in pictures[0]:
        return f"{Path(pictures[0]).stem[:100]}-edited"
    words = re.findall(r"[a-z0-9]+", prompt.lower())
    return "-".join(words[:6])[:60] or "picture"
