"""``docs/dialects.md`` lists what the code takes without effect, and the code takes it so."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.automatic1111_fields import IGNORED as WEB_UI
from api.hugging_face_fields import IGNORED as HUGGING_FACE
from api.openai_fields import IGNORED as OPENAI
from tests.api.serving import Served, png, serving, text

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_is_current() -> None:
    """A list written by hand is wrong after the next field; `make fix` writes this one."""
    spec = importlib.util.spec_from_file_location("dialects", ROOT / "docs/dialects.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs/dialects.md").read_text()
    assert module.page() == page
    assert all(f"| `{field}` | no effect |" in page for field in {*OPENAI, *WEB_UI, *HUGGING_FACE})


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as running:
        yield running


def send(served: Served, path: str, body: dict[str, Any]) -> int:
    return served.client.request("POST", path, json.dumps(body).encode()).status


@pytest.mark.parametrize("field", sorted(OPENAI))
def test_openais_field_without_effect_is_taken(served: Served, field: str) -> None:
    """And one that is nobody's is refused in the same place."""
    path = "/v1/images/edits"
    body: dict[str, Any] = {"prompt": "p", "image": text(png()), "size": "96x64"}
    assert send(served, path, body | {field: "low"}) == 200
    assert send(served, path, body | {f"{field}_": "low"}) == 400
