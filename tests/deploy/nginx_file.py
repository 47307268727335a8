"""The grammar of nginx's configuration files: directives, each with words, and a block or a semicolon."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_TOKEN = re.compile(r"#[^\n]*|\"[^\"]*\"|'[^']*'|[{};]|[^\s{};]+")


@dataclass(frozen=True)
class Directive:
    """``name values… ;`` or ``name values… { block }``. Quotes stay."""

    name: str
    values: list[str]
    block: list["Directive"] = field(default_factory=list)


def parse(text: str) -> list[Directive]:
    """Raises ``ValueError`` for a block that is not closed, or closed and not open."""
    tokens = (token for token in _TOKEN.findall(text) if not token.startswith("#"))
    return _block(tokens, top=True)


def _block(tokens: Iterator[str], *, top: bool = False) -> list[Directive]:
    directives: list[Directive] = []
    words: list[str] = []
    for token in tokens:
        if token == ";":
            directives.append(Directive(words[0], words[1:]))
            words = []
        elif token == "{":
            directives.append(Directive(words[0], words[1:], _block(tokens)))
            words = []
        elif token == "}":
            if top or words:
                raise ValueError(f"no block is open here, or a directive is not closed: {words}")
            return directives
        else:
            words.append(token)
    if not top or words:
        raise ValueError(f"a block or a directive is not closed: {words}")
    return directives
