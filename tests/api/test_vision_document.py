"""The lines that the vision service's documentation prints run against this server, by curl and requests."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.app import ApiOptions
from tests.api.findings import VISION
from tests.api.printed_lines import PRINTED, printed
from tests.api.serving import Served, serving
from tests.api.test_vision_service import half_red

ROUTES = {
    *(("GET", path) for path in ("/", "/health", "/models/status", "/jobs", "/jobs/{id}")),
    *(("POST", f"/models/{path}") for path in ("load", "unload", "unload-all")),
    *(("POST", f"/inference/{slug}") for slug in ("sam3", "grounding-dino", "depth-anything", "dinov3")),
    ("POST", "/jobs/submit/{model_type}"),
    ("DELETE", "/jobs/{id}"),
}


@pytest.fixture(scope="module")
def seeing() -> Iterator[Served]:
    with serving(ApiOptions(profile="vision"), catalog=VISION) as running:
        yield running


def test_the_curl_lines(seeing: Served, tmp_path: Path) -> None:
    """Also that names a device which is not here: the answer tells the true one."""
    health = json.loads(printed("vision-health", seeing.client.port, folder=tmp_path))
    assert (health["status"], health["gpu_available"]) == ("healthy", True)
    loaded = json.loads(printed("vision-load", seeing.client.port, folder=tmp_path))
    assert loaded["message"] == "Model sam3 loaded successfully"


def test_the_python_lines(seeing: Served, tmp_path: Path) -> None:
    """As a user would run them, and then look at the result."""
    result = python_lines(seeing.client.port, tmp_path)
    person, car = result["results"][0]
    assert (person["prompt"], car["prompt"]) == ("person", "car")
    (mask,) = person["result"]["masks"]
    assert (len(mask), len(mask[0])) == (60, 80)


def python_lines(port: int, folder: Path) -> Any:
    """What the printed script has in ``result``; a photograph lies beside it."""
    half_red().save(folder / "image.jpg", "JPEG")
    script = (PRINTED / "vision-segment.py.txt").read_text()
    script, found = re.subn(r"localhost:\d+", f"127.0.0.1:{port}", script)
    assert found == 1
    lines = f"{script}\nimport json\nprint(json.dumps([response.status_code, result]))"
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    status, result = json.loads(done.stdout)
    assert status == 200, result
    return result


def test_every_route_of_the_document_is_there(seeing: Served) -> None:
    """Answered, and not by the sentence for paths that are none."""
    for method, path in ROUTES:
        place = path.replace("{id}", "some-id").replace("{model_type}", "sam3")
        answer = seeing.client.request(method, place)
        assert "no such path" not in answer.body.decode(), place
        assert answer.status != 405, place
