"""The weight files of a checkpoint's parts, checked by their headers before anything reads them in full.

Knows the safetensors format (huggingface.co/docs/safetensors) and no model library.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import CapacityError

# In the order in which diffusers and transformers look for them.
_NAMES = (
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
)
_LONGEST_HEADER = 100_000_000  # bytes, as in the format's own reader


@dataclass(frozen=True, slots=True)
class Part:
    """weights: how many numbers. nbytes: of its files."""

    weights: int
    nbytes: int


def weight_files(part: Path) -> list[Path]:
    """The weight files in the folder of one part, by name; none for a part without weights.

    Raises ``CapacityError`` ``not_ready`` when one is missing, cut short or not what the part's index says.
    """
    for name in _NAMES:
        if (part / name).is_file():
            return _indexed(part / name) if name.endswith(".json") else [_checked(part / name)[0]]
    return [_checked(path)[0] for path in sorted(part.glob("*.safetensors"))]


def survey(folder: Path) -> dict[str, Part]:
    """The parts of a checkpoint that hold weights, by name. Raises what ``weight_files`` raises.

    Weights in the folder itself are one part, ``model``.
    """
    folders = {part.name: part for part in sorted(folder.iterdir()) if part.is_dir()}
    parts = {}
    for name, part in {"model": folder, **folders}.items():
        files = weight_files(part)
        if files:
            weights = sum(_checked(path)[1] for path in files)
            parts[name] = Part(weights, sum(path.stat().st_size for path in files))
    return parts


def weigh_file(path: Path) -> Part:
    """Of a part that is one file. Raises what ``weight_files`` raises."""
    return Part(_checked(path)[1], path.stat().st_size)


def _indexed(index: Path) -> list[Path]:
    try:
        places = json.loads(index.read_text())["weight_map"]
        tensors = {name: set[str]() for name in sorted(set(places.values()))}
        for tensor, name in places.items():
            tensors[name].add(tensor)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged(index, "is not an index of weights") from None
    for name, expected in tensors.items():
        if Path(name).name != name:
            raise damaged(index, "names a file outside its folder")
        if not (index.parent / name).is_file():
            raise damaged(index.parent / name, "is missing")
        path, _, held = _checked(index.parent / name)
        if lacking := sorted(expected - held):
            raise damaged(path, f"lacks {len(lacking)} of the tensors that its index promises")
    return [index.parent / name for name in tensors]


def _checked(path: Path) -> tuple[Path, int, set[str]]:
    """The path, how many weights the file holds, and the names of its tensors."""
    header = _header(path)
    try:
        tensors = {name: value for name, value in header.items() if name != "__metadata__"}
        weights = sum(math.prod(value["shape"]) for value in tensors.values())
    except (KeyError, TypeError):
        raise damaged(path, "is not a safetensors file") from None
    return path, weights, set(tensors)


def _header(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise damaged(path, "is not a safetensors file, or cut short")
        try:
            header = json.loads(file.read(length))
            ends = list(_ends(header))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise damaged(path, "is not a safetensors file") from None
    promised = 8 + length + max(ends, default=0)
    if size != promised:
        raise damaged(path, f"has {size} bytes and should have {promised}")
    return dict(header)


def _ends(header: dict[str, Any]) -> Iterator[int]:
    for name, value in header.items():
        if name != "__metadata__":
            yield int(value["data_offsets"][1])


def damaged(path: Path, what: str) -> CapacityError:
    """path: only the part's and the file's names are told."""
    return CapacityError(
        "not_ready",
        f"{path.parent.name}/{path.name} {what}; fetch the checkpoint again with "
        "`python handler.py download`, or copy it into MODEL_DIR again",
        retryable=False,
    )
