"""Forms: ``multipart/form-data`` and its urlencoded sibling, from a body that was read in full."""

from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from core.errors import RequestError

MAX_PARTS: Final = 64
MAX_TEXT: Final = 2**20  # bytes of a part without a file name
_MAX_HEADERS: Final = 8192  # bytes of one part's headers


@dataclass(frozen=True, slots=True)
class Part:
    """One field. ``filename`` is None where the caller sent plain text; it and the type are only claims."""

    name: str
    data: bytes
    filename: str | None = None
    media_type: str | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """Fields in the order of the body."""

    parts: tuple[Part, ...]

    def names(self) -> list[str]:
        return list(dict.fromkeys(part.name for part in self.parts))

    def files(self, *names: str) -> list[bytes]:
        """Contents of the parts of these names, in order."""
        return [part.data for part in self.parts if part.name in names]

    def text(self, name: str) -> str | None:
        """The field as text. Raises ``RequestError`` when it was sent twice, is long or no UTF-8."""
        found = [part.data for part in self.parts if part.name == name]
        if not found:
            return None
        if len(found) > 1:
            raise _unacceptable(f"{name} was sent {len(found)} times; send it once", name)
        if len(found[0]) > MAX_TEXT:
            raise _unacceptable(f"{name} is over the limit of {MAX_TEXT} bytes; shorten it", name)
        try:
            return found[0].decode()
        except UnicodeDecodeError:
            raise _unacceptable(f"{name} is no UTF-8 text; send it as UTF-8", name) from None


def parse_form(body: bytes, content_type: str) -> Form:
    """Raises ``RequestError``: ``unsupported_media_type``, ``invalid_parameter`` for a broken form."""
    kind, options = parse_options_header(content_type)
    if kind == b"application/x-www-form-urlencoded":
        return _urlencoded(body)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise RequestError(
            "unsupported_media_type", "the body must be multipart/form-data with a boundary; send a form"
        )
    collector = _Collector()
    try:
        parser = MultipartParser(options[b"boundary"], collector.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise _unacceptable("the form is broken; send multipart/form-data as clients write it") from None
    if not collector.ended:
        raise _unacceptable("the form ends in the middle of a part; send it whole")
    return Form(tuple(collector.parts))


def _urlencoded(body: bytes) -> Form:
    try:
        pairs = parse_qsl(
            body.decode(), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=MAX_PARTS
        )
    except ValueError:
        raise _unacceptable("the form is broken; send name=value pairs joined by &") from None
    return Form(tuple(Part(name, value.encode("utf-8", "replace")) for name, value in pairs))


@dataclass(slots=True)
class _Collector:
    """Takes the parser's calls."""

    parts: list[Part] = field(default_factory=list)
    ended: bool = False
    _data: bytearray = field(default_factory=bytearray)
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _disposition: bytes = b""
    _media_type: str | None = None

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._grow(self._header, data[start:end]),
            "on_header_value": lambda data, start, end: self._grow(self._value, data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": self._take,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) >= MAX_PARTS:
            raise _unacceptable(f"the form has over {MAX_PARTS} parts; send fewer")
        self._data, self._disposition, self._media_type = bytearray(), b"", None

    def _grow(self, buffer: bytearray, piece: bytes) -> None:
        buffer += piece
        if len(buffer) > _MAX_HEADERS:
            raise _unacceptable("a part of the form has headers of over 8 KB; leave them out")

    def _end_header(self) -> None:
        name = bytes(self._header).lower()
        if name == b"content-disposition":
            self._disposition = bytes(self._value)
        elif name == b"content-type":
            self._media_type = self._value.decode("latin-1").strip().lower()
        self._header.clear()
        self._value.clear()

    def _take(self, data: bytes, start: int, end: int) -> None:
        self._data += memoryview(data)[start:end]

    def _end_part(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        filename = options.get(b"filename")
        shown = None if filename is None else filename.decode("utf-8", "replace")
        self.parts.append(Part(name, bytes(self._data), shown, self._media_type))

    def _end(self) -> None:
        self.ended = True


def _unacceptable(message: str, param: str | None = None) -> RequestError:
    return RequestError("invalid_parameter", message, param=param)
