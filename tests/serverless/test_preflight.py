"""``--check`` names what is wrong and how to mend it."""

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from core.request import Task
from core.spec import PipelineSpec
from core.vision_spec import VisionSpec
from serverless.preflight import Finding, findings, report
from settings import Settings
from tests.serverless.painting import SPEC

LOOKS = replace(
    SPEC,
    name="looks",
    source="Org/Real",
    tasks=frozenset({Task.EMBED}),
    vision=VisionSpec(fit="square", side=224),
    needs_gpu=False,
    vram_gb=6.0,
)
REAL = replace(SPEC, name="real", source="Org/Real", needs_gpu=True, vram_gb=0.001, licence="MIT")


def settings(tmp_path: Path, **given: Any) -> Settings:
    folders = {"cache_dir": tmp_path / "cache", "hf_home": tmp_path / "hf"}
    return Settings(_env_file=None, **(folders | given))


def found(spec: PipelineSpec, given: Settings, subject: str) -> Finding:
    # Answers of the hub and the bucket come from this process, so the questions are asked in a thread.
    return next(finding for finding in findings(given, spec) if finding.subject == subject)


def with_server(status: int, ask: Callable[[str], Finding]) -> tuple[Finding, list[web.Request]]:
    """``ask`` is given the address of a server that answers everything with ``status``."""
    requests: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        requests.append(request)
        return web.Response(status=status)

    async def main() -> Finding:
        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            return await asyncio.to_thread(ask, f"http://127.0.0.1:{runner.addresses[0][1]}")
        finally:
            await runner.cleanup()

    return asyncio.run(main()), requests


def test_a_model_without_downloads_is_well_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demonstration must pass its own check."""
    assert report(settings(tmp_path), SPEC) == 0
    shown = capsys.readouterr().out
    assert "PROBLEM" not in shown
    assert "all is well" in shown


def test_problems_are_counted_in_the_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script can ask."""
    given = settings(tmp_path, local_only=True, bucket_endpoint_url="http://127.0.0.1:9")
    assert report(given, SPEC) == 1
    assert "1 problem found" in capsys.readouterr().out


def test_a_missing_gpu_is_named_with_the_way_out(tmp_path: Path) -> None:
    """The commonest first fault; this test bed has no GPU."""
    finding = found(REAL, settings(tmp_path, local_only=True), "device")
    assert not finding.good
    assert "DEFAULT_MODEL=pocket-edit" in finding.sentence


@pytest.mark.parametrize(
    ("gib", "mode", "good"), [(48, "bf16", False), (48, "8bit", True), (64, "bf16", True)]
)
def test_a_memory_limit_that_the_model_exceeds_is_named(
    tmp_path: Path, gib: float, mode: str, good: bool
) -> None:
    """Before the weights are fetched, which takes longer than reading this."""
    given = settings(tmp_path, gpu_max_gib=gib, precision_mode=mode, local_only=True)
    finding = found(replace(REAL, vram_gb=60.0), given, "budget")
    assert finding.good == good
    assert f"GPU_MAX_GIB={gib}" in finding.sentence


@pytest.mark.parametrize("mode", ["bf16", "8bit"])
def test_no_precision_makes_a_vision_model_smaller(tmp_path: Path, mode: str) -> None:
    """Its weights stay as they are, so the limit is all that can be changed."""
    given = settings(tmp_path, gpu_max_gib=5, precision_mode=mode, local_only=True)
    finding = found(LOOKS, given, "budget")
    assert (finding.good, "PRECISION_MODE" in finding.sentence) == (False, False)


@pytest.mark.parametrize(("spec", "index"), [(REAL, "model_index.json"), (LOOKS, "config.json")], ids=str)
def test_weights_are_looked_for_where_they_would_be_loaded_from(
    tmp_path: Path, spec: PipelineSpec, index: str
) -> None:
    """MODEL_DIR first, then the hub's cache; LOCAL_ONLY forbids the rest. By the file that a load reads."""
    model_dir = tmp_path / "model"
    given = settings(tmp_path, local_only=True, model_dir=model_dir)
    assert f"no {index};" in found(spec, given, "weights").sentence
    model_dir.mkdir()
    (model_dir / index).write_text("{}")
    assert found(spec, given, "weights").good

    given = settings(tmp_path, local_only=True)
    assert "LOCAL_ONLY" in found(spec, given, "weights").sentence
    snapshot = tmp_path / "hf/hub/models--Org--Real/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / index).write_text("{}")
    assert found(spec, given, "weights").good


def test_a_vision_checkpoint_is_asked_for_by_its_own_index(tmp_path: Path) -> None:
    """It has no model_index.json, and the hub would answer 404."""

    def ask(base: str) -> Finding:
        return found(LOOKS, settings(tmp_path, hf_endpoint=base), "hub")

    _, requests = with_server(200, ask)
    assert requests[0].path == "/Org/Real/resolve/main/config.json"


def test_a_folder_goes_before_a_built_in_checkpoint(tmp_path: Path) -> None:
    """As when it is loaded."""
    finding = found(SPEC, settings(tmp_path, model_dir=tmp_path / "none"), "weights")
    assert not finding.good
    assert "MODEL_DIR" in finding.sentence


@pytest.mark.parametrize(
    ("status", "token", "good", "words"),
    [
        (200, None, True, "can be fetched"),
        (401, None, False, "set HF_TOKEN"),
        (403, "hf_x", False, "renew the token or accept"),
        (503, None, False, "answers 503"),
    ],
)
def test_the_hub_is_asked_with_the_token(
    tmp_path: Path, status: int, token: str | None, good: bool, words: str
) -> None:
    """A gated model fails only after minutes of start-up otherwise."""

    def ask(base: str) -> Finding:
        return found(REAL, settings(tmp_path, hf_endpoint=base, hf_token=token), "hub")

    finding, requests = with_server(status, ask)
    asked = (requests[0].method, requests[0].path)
    assert (finding.good, asked) == (good, ("HEAD", "/Org/Real/resolve/main/model_index.json"))
    assert words in finding.sentence
    assert requests[0].headers.get("Authorization") == (f"Bearer {token}" if token else None)


def test_a_pinned_checkpoint_is_asked_for_and_looked_for_by_its_revision(tmp_path: Path) -> None:
    """``@`` is ours, not the hub's."""
    pinned = replace(REAL, source="Org/Real@v2")

    def ask(base: str) -> Finding:
        return found(pinned, settings(tmp_path, hf_endpoint=base), "hub")

    _, requests = with_server(200, ask)
    assert requests[0].path == "/Org/Real/resolve/v2/model_index.json"
    cache(tmp_path, "abc", v2="abc")
    assert found(pinned, settings(tmp_path, local_only=True), "weights").good


def cache(tmp_path: Path, commit: str, **references: str) -> None:
    repository = tmp_path / "hf/hub/models--Org--Real"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "model_index.json").write_text("{}")
    (repository / "refs").mkdir()
    for name, value in references.items():
        (repository / "refs" / name).write_text(value)


def test_the_operators_revision_is_asked_for_and_looked_for(tmp_path: Path) -> None:
    """As when it is loaded: MODEL_REVISION comes before the row's own, and another commit is none."""
    pinned = replace(REAL, source="Org/Real@v2")

    def ask(base: str) -> Finding:
        return found(pinned, settings(tmp_path, hf_endpoint=base, model_revision="v3"), "hub")

    _, requests = with_server(200, ask)
    assert requests[0].path == "/Org/Real/resolve/v3/model_index.json"
    cache(tmp_path, "abc", v2="abc")
    for revision, good in (("v3", False), ("v2", True), ("abc", True)):
        finding = found(REAL, settings(tmp_path, local_only=True, model_revision=revision), "weights")
        assert (finding.good, f"Org/Real@{revision}" in finding.sentence) == (good, True)


def test_a_revision_of_what_is_not_from_the_hub_is_named(tmp_path: Path) -> None:
    """The load refuses it."""
    for spec, given in ((SPEC, {}), (REAL, {"model_dir": tmp_path})):
        finding = found(spec, settings(tmp_path, model_revision="v1", **given), "revision")
        assert not finding.good
        assert "unset it" in finding.sentence


def test_an_unreachable_hub_is_named(tmp_path: Path) -> None:
    """With the two remedies there are."""
    finding = found(REAL, settings(tmp_path, hf_endpoint="http://127.0.0.1:9"), "hub")
    assert not finding.good
    assert "HF_ENDPOINT" in finding.sentence
    assert "LOCAL_ONLY=1" in finding.sentence


def test_nobody_is_asked_under_local_only(tmp_path: Path) -> None:
    """It is a promise."""
    given = settings(tmp_path, local_only=True, hf_endpoint="http://127.0.0.1:9")
    assert "hub" not in {finding.subject for finding in findings(given, REAL)}


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """58 GB of weights fill it after an hour of downloading."""
    huge = replace(REAL, vram_gb=1e6)
    finding = found(huge, settings(tmp_path, hf_endpoint="http://127.0.0.1:9"), "disk")
    assert not finding.good
    assert "1000000 GB are needed" in finding.sentence
    assert "HF_HOME" in finding.sentence


def test_half_a_bucket_is_named(tmp_path: Path) -> None:
    """The SDK would silently write to a local folder instead."""
    finding = found(SPEC, settings(tmp_path, bucket_access_key_id="k"), "bucket")
    assert "BUCKET_ENDPOINT_URL, BUCKET_SECRET_ACCESS_KEY missing" in finding.sentence


def test_a_bucket_is_asked(tmp_path: Path) -> None:
    """Any answer shows that the address is right; refusals are normal without a signature."""
    keys = {"bucket_access_key_id": "k", "bucket_secret_access_key": "s"}

    def ask(base: str) -> Finding:
        return found(SPEC, settings(tmp_path, bucket_endpoint_url=base, **keys), "bucket")

    assert with_server(403, ask)[0].good
    assert not ask("http://127.0.0.1:9").good


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    """Only where a port is needed."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        given = {"api_host": "127.0.0.1", "api_port": port}
        finding = found(SPEC, settings(tmp_path, standalone_mode=True, **given), "port")
        assert "set API_PORT" in finding.sentence
        assert "port" not in {one.subject for one in findings(settings(tmp_path, **given), SPEC)}
    assert found(SPEC, settings(tmp_path, standalone_mode=True, **given), "port").good


def test_no_finding_holds_a_secret(tmp_path: Path) -> None:
    """The report is made to be pasted into an issue."""
    given = settings(
        tmp_path,
        hf_token="hf_hidden",
        hf_endpoint="http://127.0.0.1:9",
        bucket_endpoint_url="http://127.0.0.1:9",
        bucket_access_key_id="id_hidden",
        bucket_secret_access_key="key_hidden",
    )
    assert "hidden" not in json.dumps([str(finding) for finding in findings(given, REAL)])
