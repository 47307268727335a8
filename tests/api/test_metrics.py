"""/metrics as Prometheus, and as the text-to-image page, read it; and the dashboard made of it."""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.app import AccessOptions, ApiOptions
from api.keys import KeyRing
from core.errors import ExecutionError, RequestError
from core.stats import ModelCounts, Stats
from tests.api.serving import Served, png, serving, text

ROOT = Path(__file__).resolve().parents[2]
WISHES = {"prompt": "p", "image_base64": text(png()), "seed": 5, "width": 96, "height": 64}
COUNTS = {
    "accepted": 12,
    "queued": 2,
    "running": 1,
    "succeeded": 6,
    "failed": 1,
    "cancelled": 1,
    "expired": 1,
}
STATS = Stats(
    batch_sizes={1: 10, 4: 5, 8: 2},
    batch_stops={"size": 2, "drained": 15},
    stage_seconds={"acquire": 1.0, "prepare": 0.5, "step": 8.0, "decode": 0.25},
    models=ModelCounts(loads=3, failures=1, evictions=2, memory={"allocated": 5_000_000, "free": 7_000_000}),
)


@pytest.fixture
def counted() -> Iterator[Served]:
    with serving(stats=lambda: STATS) as running:
        caches = {"painter.texts": {"hits": 4, "misses": 2, "entries": 2, "bytes": 640}}
        running.probe.health = replace(running.probe.health, counts=COUNTS, caches=caches)
        yield running


def samples(served: Served) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = served.client.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


def value(served: Served, name: str, **labels: str) -> float:
    return samples(served)[name, tuple(sorted(labels.items()))]


def test_generations_have_the_names_of_the_sdxl_service(counted: Served) -> None:
    """Its dashboards and alerts go on working."""
    for seed in range(3):
        assert counted.client.run(WISHES | {"seed": seed}).status == 200
    counted.painter.fault = ExecutionError("pipeline_error", "broken")
    assert counted.client.run(WISHES).status == 500
    found = samples(counted)
    model = ("model", "painter")
    assert found["image_generations_total", (model, ("status", "completed"))] == 3
    assert found["image_generations_total", (model, ("status", "failed"))] == 1
    bounds = [dict(labels)["le"] for name, labels in found if name == "image_generation_seconds_bucket"]
    assert bounds == ["0.1", "0.25", "0.5", "1.0", "2.0", "4.0", "8.0", "16.0", "32.0", "64.0", "+Inf"]
    assert found["image_generation_seconds_count", (model,)] == 3
    assert found["batchmux_queue_seconds_sum", (model,)] == pytest.approx(0.75)


def test_refused_and_cancelled_requests_are_no_generations(counted: Served) -> None:
    """A failure rate must tell of failures: what was never begun, or left, is none."""
    counted.painter.fault = RequestError("cancelled", "m")
    assert counted.client.run(WISHES).status == 499
    assert counted.client.run({"image_base64": text(png())}).status == 422
    found = samples(counted)
    assert not [name for name, _ in found if name.startswith("image_generations_total")]
    assert found["batchmux_requests_total", (("dialect", "flat"), ("status", "422"))] == 1
    assert found["batchmux_requests_total", (("dialect", "flat"), ("status", "499"))] == 1


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("batchmux_ready", {}, 1),
        ("batchmux_jobs_accepted_total", {}, 12),
        ("batchmux_jobs", {"state": "queued"}, 2),
        ("batchmux_jobs", {"state": "running"}, 1),
        ("batchmux_jobs_ended_total", {"state": "succeeded"}, 6),
        ("batchmux_jobs_ended_total", {"state": "expired"}, 1),
        ("batchmux_jobs_unaccounted", {}, 0),
        ("batchmux_step_rows_bucket", {"le": "1.0"}, 10),
        ("batchmux_step_rows_bucket", {"le": "4.0"}, 15),
        ("batchmux_step_rows_bucket", {"le": "+Inf"}, 17),
        ("batchmux_step_rows_sum", {}, 46),
        ("batchmux_batch_stops_total", {"reason": "size"}, 2),
        ("batchmux_stage_seconds_total", {"stage": "step"}, 8),
        ("batchmux_cache_events_total", {"cache": "painter.texts", "event": "hits"}, 4),
        ("batchmux_cache_held", {"cache": "painter.texts", "unit": "bytes"}, 640),
        ("batchmux_model_loads_total", {}, 3),
        ("batchmux_model_evictions_total", {}, 2),
        ("batchmux_model_load_failures_total", {}, 1),
        ("batchmux_device_memory_bytes", {"kind": "allocated"}, 5_000_000),
    ],
)
def test_what_others_count_is_read_at_the_scrape(
    name: str, labels: dict[str, str], expected: float, counted: Served
) -> None:
    """The mux and the models keep the books; a copy of them would drift."""
    assert value(counted, name, **labels) == expected


def test_a_lost_request_shows(counted: Served) -> None:
    """The identity that nothing is lost by is there to be alerted on."""
    counted.probe.health = replace(counted.probe.health, counts=COUNTS | {"accepted": 13})
    assert value(counted, "batchmux_jobs_unaccounted") == 1


def test_two_applications_count_for_themselves(counted: Served) -> None:
    """One registry for the process would add them up, or refuse the second."""
    with serving() as other:
        assert other.client.run(WISHES).status == 200
        assert not [name for name, _ in samples(counted) if name == "image_generations_total"]


@pytest.mark.parametrize(
    ("path", "accept", "profile", "json_expected"),
    [
        ("/metrics", "*/*", "worker", False),
        ("/metrics", "application/json", "worker", True),
        ("/metrics?format=json", "*/*", "worker", True),
        ("/metrics?format=text", "application/json", "gateway", False),
        ("/metrics", "*/*", "gateway", True),
        ("/metrics", "application/openmetrics-text;q=0.5,text/plain;version=0.0.4", "gateway", False),
    ],
)
def test_one_path_serves_two_contracts(path: str, accept: str, profile: str, json_expected: bool) -> None:
    """Two older servers had a /metrics; most clients accept anything, so the profile decides for them."""
    with serving(ApiOptions(profile=profile)) as running:
        answer = running.client.request("GET", path, headers={"Accept": accept})
    assert answer.headers["content-type"].startswith("application/json" if json_expected else "text/plain")


def test_the_json_has_the_keys_of_the_text_to_image_server(counted: Served) -> None:
    """Its page reads these."""
    counted.client.run(WISHES)
    body = counted.client.get("/metrics?format=json").json()
    assert 0 <= body.pop("uptime_seconds") < 60
    assert body.pop("average_generation_time_ms") >= 0
    assert body == {
        "total_requests": 12,
        "successful_generations": 1,
        "failed_generations": 0,
        "current_queue_size": 2,
        "active_generations": 1,
        "average_queue_wait_ms": 250.0,
        "requests_per_minute": 1,
    }


@pytest.mark.parametrize("query", ["", "?format=json"])
def test_disabled_metrics_are_an_empty_200(query: str) -> None:
    """As the SDXL service had it; a scraper sees an idle target rather than a dead one."""
    with serving(ApiOptions(metrics_enabled=False)) as running:
        answer = running.client.get(f"/metrics{query}")
    assert (answer.status, answer.body) == (200, b"")


def test_a_scraper_needs_no_key() -> None:
    """Also one that asks with HEAD whether it is there."""
    with serving(access=AccessOptions(keys=KeyRing.of(True, ["k"]))) as running:
        assert running.client.get("/metrics").status == 200
        assert running.client.request("HEAD", "/metrics").status == 200


@pytest.mark.parametrize("file", ["deploy/grafana/batchmux.json", "deploy/batchmux.rules.yml"])
def test_dashboard_and_alerts_ask_only_for_what_is_there(file: str, counted: Served) -> None:
    """A renamed metric would leave an empty panel that nobody notices."""
    counted.client.run(WISHES)
    there = {name for name, _ in samples(counted)}
    asked = set(re.findall(r"\b(?:batchmux|image)_[a-z_]+\b", (ROOT / file).read_text()))
    assert len(asked) >= 4
    assert asked <= there


def test_every_metric_of_ours_has_a_panel(counted: Served) -> None:
    """What nobody looks at need not be counted."""
    counted.client.run(WISHES)
    board = json.loads((ROOT / "deploy/grafana/batchmux.json").read_text())
    shown = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    families = {
        re.sub(r"_(bucket|sum|count|total|created)$", "", name)
        for name, _ in samples(counted)
        if name.startswith(("batchmux_", "image_"))
    }
    assert {family for family in families if family not in shown} == {"batchmux_cache_held"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) >= 12
    assert all(panel["title"] and panel["targets"] for panel in board["panels"])


def test_the_sample_configuration_scrapes_the_right_path() -> None:
    """It is copied as it stands."""
    sample = (ROOT / "deploy/prometheus.yml").read_text()
    assert "metrics_path: /metrics" in sample
    assert "batchmux.rules.yml" in sample


def test_a_flood_of_scrapes_does_not_hold_up_work(counted: Served) -> None:
    """Reading is all it does: many at once are answered while requests are, too."""

    async def main() -> list[int]:
        async def one(path: str) -> int:
            if path == "/run":
                return (await asyncio.to_thread(counted.client.run, WISHES)).status
            return (await asyncio.to_thread(counted.client.get, path)).status

        return await asyncio.gather(*(one(path) for path in ["/metrics", "/run"] * 10))

    assert asyncio.run(main()) == [200] * 20
