"""A LoRA file as data: where it is, and what its header says, checked before a byte of it is loaded.

Safetensors only. Knows no model library: whether the layers fit a model is asked elsewhere.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import CapacityError
from pipelines.lora_keys import BadLora, Layer, Tensor, layers_of
from pipelines.options import ModelOptions, Report
from pipelines.single_files import SUFFIX, locate

# A header takes about 100 bytes a tensor; the largest published LoRAs have some 5,000.
MAX_HEADER_BYTES = 8 * 2**20
MAX_FILE_BYTES = 8 * 2**30
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4}
_BUILT_IN = Path(__file__).parent / "pocket" / "weights"


class LoraNotFound(Exception):
    """``str`` is a sentence; it names no path. retryable: waiting may help."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraFile:
    """A file whose header holds together.

    source: as the row or the operator named it. layers: the modules it changes, as the file names them.
    """

    source: str
    path: Path
    layers: tuple[Layer, ...]


def find(source: str, options: ModelOptions, report: Report | None = None) -> LoraFile:
    """The checked file of ``source``: an absolute path, ``builtin:FILE`` of this repository's own, or a file
    of LORA_DIR or the model hub as ``single_files`` has it. report: told the bytes that are fetched.

    Raises ``LoraNotFound``, and ``BadLora`` when the file is no LoRA that could be applied in full.
    """
    path = _locate(source, options, report)
    try:
        return LoraFile(source=source, path=path, layers=_read_header(path))
    except OSError as error:
        raise LoraNotFound(f"it cannot be read ({error.strerror})") from None


def _locate(source: str, options: ModelOptions, report: Report | None) -> Path:
    if not source.endswith(SUFFIX):
        raise BadLora(f"only {SUFFIX} files are read; a pickle can run code")
    if source.startswith("builtin:"):
        path = _BUILT_IN / source.removeprefix("builtin:")
    elif Path(source).expanduser().is_absolute():
        path = Path(source).expanduser()
    else:
        try:
            return locate(source, options, report)
        except CapacityError as error:
            raise LoraNotFound(error.message, retryable=error.retryable) from None
    if not path.is_file():
        raise LoraNotFound("there is no such file")
    return path


def _read_header(path: Path) -> tuple[Layer, ...]:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise BadLora(f"{size} bytes are over the limit of {MAX_FILE_BYTES} for a LoRA")
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= size - 8:
            raise BadLora("it is not a whole safetensors file")
        if length > MAX_HEADER_BYTES:
            raise BadLora(f"a header of {length} bytes is over the limit of {MAX_HEADER_BYTES}")
        try:
            header = json.loads(file.read(length), object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError):
            raise BadLora("its header is not JSON with each tensor named once") from None
    if not isinstance(header, dict):
        raise BadLora("its header is no table of tensors")
    metadata = header.pop("__metadata__", {})
    tensors = {name: _tensor(name, entry) for name, entry in header.items()}
    _require_tiling(tensors, header, size - 8 - length)
    return layers_of(tensors, metadata)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name is given twice")
    return table


def _tensor(name: str, entry: Any) -> Tensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        raise BadLora("a tensor of its header is not described as safetensors does") from None
    if dtype not in _WIDTHS:
        raise BadLora(f"its weights are not plain numbers of 16, 32 or 64 bits ({str(dtype)[:20]})")
    if not whole or len(shape) > 4 or math.prod(shape) * _WIDTHS[dtype] != end - begin:
        raise BadLora("a tensor's shape does not match its bytes")
    return Tensor(name, shape)


def _require_tiling(tensors: Mapping[str, Tensor], header: Mapping[str, Any], size: int) -> None:
    """The tensors follow one another without gap or overlap, to the end of the file."""
    at = 0
    for begin, end in sorted(tuple(header[name]["data_offsets"]) for name in tensors):
        if begin != at:
            raise BadLora("its tensors overlap or leave gaps")
        at = end
    if at != size:
        raise BadLora("it is not a whole safetensors file")
