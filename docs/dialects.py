"""Writes ``docs/dialects.md``: fields of other people's standards without effect here, or refused.

Run through ``make fix``; a test compares the file with what this would write.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script's own folder is on the path, the repository is not

from api import automatic1111_fields, hugging_face_fields, openai_fields, vision_models  # noqa: E402 - after the path

PAGE = ROOT / "docs/dialects.md"
HEAD = """# Fields without effect

Written by `make fix`. A field that no standard knows is refused, and the refusal names the nearest one that
is known: a misspelt field that is ignored gives somebody the wrong picture. What is in these tables belongs
to the standard of its dialect, and clients send it without asking; it is taken and changes nothing, or it is
refused because whoever sends it counts on what cannot be had here.
"""
_USELESS = "nothing of it exists here"


def table(rows: Iterable[tuple[str, str, str]]) -> str:
    lines = [f"| `{field}` | {effect} | {reason} |\n" for field, effect, reason in sorted(rows)]
    return "| Field | | Why |\n| --- | --- | --- |\n" + "".join(lines)


def ignored(reasons: Mapping[str, str]) -> list[tuple[str, str, str]]:
    return [(field, "no effect", reason) for field, reason in reasons.items()]


def refused(reasons: Mapping[str, str]) -> list[tuple[str, str, str]]:
    return [(field, "refused", reason) for field, reason in reasons.items()]


def page() -> str:
    empty_only = "taken only where it is empty or false, and then changes nothing"
    web_ui = automatic1111_fields
    openai = ignored(dict.fromkeys(openai_fields.IGNORED, _USELESS)) + refused(openai_fields.REFUSED)
    fields = ignored(web_ui.IGNORED) + refused(dict.fromkeys(web_ui.REFUSED, empty_only))
    settings = ignored(dict.fromkeys(web_ui.IGNORED_SETTINGS, _USELESS))
    sections = {
        "OpenAI Images": openai,
        "Hugging Face": ignored(hugging_face_fields.IGNORED),
        "AUTOMATIC1111, `txt2img` and `img2img`": fields,
        "AUTOMATIC1111, `options` and `override_settings`": settings,
        "Vision, `models/load`": ignored(vision_models.IGNORED),
        "RunPod and flat, beside `input`": ignored({"id": "the queue gives a job its own"}),
    }
    return HEAD + "".join(f"\n## {title}\n\n{table(rows)}" for title, rows in sections.items())


if __name__ == "__main__":
    PAGE.write_text(page())
