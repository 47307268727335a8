"""A command's arguments as the flat dialect's ``input``, which this process and every server understand."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pybase64

from api.images import ImageFormat
from command.failure import WRONG, Failure

_SUFFIXES: dict[str, ImageFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """None leaves the choice to whoever answers. ``pictures`` and ``mask``: files, URLs, or - for stdin."""

    prompt: str
    pictures: tuple[str, ...] = ()
    mask: str | None = None
    model: str | None = None
    steps: int | None = None
    seed: int | None = None
    cfg: float | None = None
    size: tuple[int, int] | None = None
    strength: float | None = None
    loras: tuple[tuple[str, float | None], ...] = ()
    negative: str | None = None
    image_format: ImageFormat | None = None

    def job_input(self, output: str | None) -> dict[str, Any]:
        """With the pictures read. Raises ``Failure`` for one that cannot be."""
        if [*self.pictures, self.mask].count("-") > 1:
            raise Failure("standard input (-) holds one picture; name files for the others", WRONG)
        width, height = self.size or (None, None)
        given = {
            "prompt": self.prompt,
            "images": [read(name) for name in self.pictures] or None,
            "mask": None if self.mask is None else read(self.mask),
            "model": self.model,
            "num_inference_steps": self.steps,
            "seed": self.seed,
            "true_cfg_scale": self.cfg,
            "width": width,
            "height": height,
            "strength": self.strength,
            "loras": [_lora(*each) for each in self.loras] or None,
            "negative_prompt": self.negative,
            "output_format": self.image_format or _format_of(output),
        }
        return {field: value for field, value in given.items() if value is not None}


def _lora(name: str, scale: float | None) -> dict[str, Any]:
    return {"id": name} if scale is None else {"id": name, "scale": scale}


def read(name: str) -> str:
    """A URL as it is; a file's or standard input's content in base64. Raises ``Failure``."""
    if name.startswith(("http://", "https://")):
        return name
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except FileNotFoundError:
        raise Failure(f"{name}: no such file", WRONG) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file's name"
        raise Failure(f"{name}: cannot be read ({reason})", WRONG) from None
    if not data:
        raise Failure(f"{'standard input' if name == '-' else name}: is empty; a picture is needed", WRONG)
    return str(pybase64.b64encode(data), "ascii")


def _format_of(output: str | None) -> ImageFormat:
    """What a file's name promises. Raises ``Failure`` where no picture of that kind is made."""
    if output is None or output == "-":
        return "png"
    suffix = Path(output).suffix.lower()
    if suffix not in _SUFFIXES:
        known = ", ".join(_SUFFIXES)
        raise Failure(f"--output: {output} ends in none of {known}; rename it, or say --format", WRONG)
    return _SUFFIXES[suffix]
