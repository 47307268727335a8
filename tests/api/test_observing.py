"""The line that is logged of a request, and the figures in its answer's headers."""

import logging
import re

import pytest

from api.app import AccessOptions, ApiOptions
from api.keys import KeyRing
from tests.api.serving import Client, png, serving, text

WISHES = {"prompt": "line one\nline two", "image_base64": text(png()), "seed": 5, "width": 96, "height": 64}


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    pairs = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)')
    return [
        dict(pairs.findall(record.getMessage())) for record in caplog.records if record.name == "batchmux.api"
    ]


def test_the_line_tells_what_happened(caplog: pytest.LogCaptureFixture) -> None:
    """Who, what, how it ended and where the time went; no prompt and no key."""
    access = AccessOptions(keys=KeyRing.of(True, ["devtoken"]))
    with serving(access=access) as running, caplog.at_level(logging.INFO, "batchmux.api"):
        running.client.run(WISHES, headers={"X-API-Key": "devtoken", "X-Request-Id": "mine"})
    (line,) = lines(caplog)
    told = {"request": "mine", "method": "POST", "path": "/run", "dialect": "flat", "status": "200"}
    told |= {"code": "ok", "model": "painter", "pictures": "1", "steps": "40", "batch": "3"}
    assert told.items() <= line.items()
    assert (line["queue_ms"], line["inference_ms"]) == ("250", "1500")
    assert {"parse_ms", "encode_ms", "job", "owner", "out", "ms"} <= line.keys()
    assert "devtoken" not in caplog.text
    assert "line one" not in caplog.text


def test_prompts_are_logged_on_demand_and_cannot_break_the_line(caplog: pytest.LogCaptureFixture) -> None:
    """A line feed in a prompt would forge a second entry."""
    with serving(ApiOptions(log_prompts=True)) as running, caplog.at_level(logging.INFO, "batchmux.api"):
        running.client.run(WISHES)
    assert lines(caplog)[0]["prompt"] == r'"line one\nline two"'
    assert all("\n" not in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "shown"),
    [
        ("POST", "/run", "401", "unauthorized", "/run"),
        ("GET", "/nothing", "401", "unauthorized", "/nothing"),
        ("GET", "/a%0Astatus=200", "401", "unauthorized", "?"),
        ("GET", "/a%20b", "401", "unauthorized", "?"),
    ],
)
def test_refused_requests_have_their_line_too(
    method: str, path: str, status: str, code: str, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody who tries keys must show; and a path must not forge anything."""
    access = AccessOptions(keys=KeyRing.of(True, ["devtoken"]))
    with serving(access=access) as running, caplog.at_level(logging.INFO, "batchmux.api"):
        running.client.request(method, path, b"{}" if method == "POST" else None)
    (line,) = lines(caplog)
    assert (line["status"], line["code"], line["path"]) == (status, code, shown)


@pytest.mark.parametrize(
    ("method", "path", "dialect"),
    [
        ("POST", "/v1/models/purge", "sdxl_service"),
        ("POST", "/v1/generate", "sdxl_service"),
        ("GET", "/lora/list", "generate_service"),
        ("POST", "/lora/unload", "generate_service"),
        ("POST", "/generate", "generate_service"),
        ("GET", "/v2/x/health", "runpod"),
        ("POST", "/v2/x/run", "runpod"),
        ("GET", "/jobs", "jobs"),
        ("POST", "/sdapi/v1/interrupt", "automatic1111"),
        ("POST", "/sdapi/v1/txt2img", "automatic1111"),
    ],
)
def test_the_line_names_the_dialect_not_the_machinery(
    method: str, path: str, dialect: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A panel by dialect must not lump together what has nothing in common but a class."""
    with serving() as running, caplog.at_level(logging.INFO, "batchmux.api"):
        running.client.request(method, path, b"{}" if method == "POST" else None)
    assert lines(caplog)[-1]["dialect"] == dialect


def test_probes_are_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """They come every second, and say nothing new."""
    with serving() as running, caplog.at_level(logging.INFO, "batchmux.api"):
        for path in ("/health", "/metrics", "/ready"):
            assert running.client.get(path).status == 200
    assert lines(caplog) == []


def test_server_timing_says_where_the_time_went() -> None:
    """Browsers draw it; the names are the stages a caller can understand."""
    with serving() as running:
        header = running.client.run(WISHES).headers["server-timing"]
    stages = dict(part.split(";dur=") for part in header.split(", "))
    assert list(stages) == ["parse", "queue", "inference", "encode", "total"]
    assert (stages["queue"], stages["inference"]) == ("250.0", "1500.0")
    assert all(float(seconds) >= 0 for seconds in stages.values())


def test_everything_has_a_request_id() -> None:
    """Also what no dialect answers."""
    with serving() as running:
        client: Client = running.client
        for path in ("/health", "/metrics", "/nothing", "/openapi.json"):
            assert client.request("GET", path, headers={"X-Request-Id": "a1"}).headers["x-request-id"] == "a1"
