"""The program as its users start it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import requests
from PIL import Image as Pillow

from tests.serverless.edits import job, photograph, picture
from tests.serverless.job_server import JobServer
from tests.serverless.painting import LOST

ROOT = Path(__file__).resolve().parent.parent


def environment(tmp_path: Path, **given: str) -> dict[str, str]:
    """This process's, with the pocket checkpoint and nobody's caches."""
    own = {
        "DEFAULT_MODEL": "pocket-edit",
        "CACHE_DIR": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "hf"),
        "OUTPUT_DIR": str(tmp_path / "out"),
        "DATA_DIR": str(tmp_path / "data"),
        "OMP_NUM_THREADS": "1",
    }
    return os.environ | own | given


def handler(
    tmp_path: Path, *arguments: str, cwd: Path = ROOT, given: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "handler.py"), *arguments],
        cwd=cwd,
        env=environment(tmp_path, **(given or {})),
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_importing_it_loads_nothing_heavy_and_starts_nothing() -> None:
    """The SDK's tools import handlers; health checks wait for the first second of a start."""
    heavy = {"torch", "diffusers", "transformers", "fastapi", "uvicorn", "runpod", "boto3", "aiohttp"}
    script = (
        "import sys, threading, handler\n"
        f"print(sorted({heavy!r} & set(sys.modules)), threading.active_count())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[] 1", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("BATCH_SIZE", "many", "BATCH_SIZE"),
        (
            "DEFAULT_MODEL",
            "pocket-edt",
            "DEFAULT_MODEL or ALLOWED_MODELS: no such model here; did you mean 'pocket-edit'?",
        ),
        ("API_WORKERS", "2", "API_WORKERS: one process owns one device"),
        ("MAX_OUTPUT_MB", "20", "MAX_OUTPUT_MB"),
    ],
)
def test_a_bad_setting_stops_with_its_name(tmp_path: Path, variable: str, value: str, words: str) -> None:
    """One sentence, no traceback."""
    done = handler(tmp_path, "--check", given={variable: value})
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_setting_on_the_platform_answers_the_jobs(tmp_path: Path) -> None:
    """There, ending means being started again, for ever."""

    async def main() -> None:
        async with JobServer() as server:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "handler.py"),
                cwd=ROOT,
                env=environment(tmp_path, **server.environment(), DEFAULT_MODEL="pocket-edt"),
            )
            server.add([job("a")])
            await server.until(lambda: server.results)
            answer = server.answer("a")
            assert "did you mean 'pocket-edit'?" in answer["error"]
            assert (answer["output"]["code"], answer["output"]["retryable"]) == ("not_ready", False)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 5) == 0

    asyncio.run(main())


def test_a_real_model_without_a_gpu_answers_the_jobs_with_the_way_out(tmp_path: Path) -> None:
    """Never a silent fallback to another model."""

    async def main() -> None:
        async with JobServer() as server:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "handler.py"),
                cwd=ROOT,
                env=environment(tmp_path, **server.environment(), DEFAULT_MODEL="qwen-image-edit-2509"),
            )
            server.add([job("a")])
            await server.until(lambda: server.results)
            answer = server.answer("a")
            assert "DEFAULT_MODEL=pocket-edit" in answer["error"]
            assert (answer["output"]["code"], answer["output"]["retryable"]) == ("not_ready", False)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 5) == 0

    asyncio.run(main())


def test_real_edits_under_the_platform(tmp_path: Path) -> None:
    """Nothing of it is a fake but the platform; and a loaded model must not make leaving slow."""
    jobs = [job(f"job-{n}", f"picture {n}", width=64 + 16 * (n % 2), height=64, seed=n) for n in range(6)]

    async def main() -> None:
        async with JobServer() as server:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "handler.py"), cwd=ROOT, env=environment(tmp_path, **server.environment())
            )
            server.add(jobs)
            await server.until(lambda: len(server.results) == len(jobs), within=60)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 2) == 0
            for asked in jobs:
                answer = server.answer(asked["id"])["output"]
                assert picture(answer).size == (asked["input"]["width"], 64)
                assert (answer["prompt"], answer["seed"]) == (
                    asked["input"]["prompt"],
                    asked["input"]["seed"],
                )
            assert len({server.answer(asked["id"])["output"]["image"] for asked in jobs}) == len(jobs)

    asyncio.run(main())


def test_check_and_help(tmp_path: Path) -> None:
    """The two things to try first."""
    checked = handler(tmp_path, "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "all is well" in checked.stdout
    helped = handler(tmp_path, "--help")
    assert helped.returncode == 0
    assert "DEFAULT_MODEL" in helped.stdout


def test_check_names_the_missing_gpu(tmp_path: Path) -> None:
    """And says what would work."""
    done = handler(tmp_path, "--check", given={"DEFAULT_MODEL": "qwen-image-edit-2509", "LOCAL_ONLY": "1"})
    assert done.returncode == 1
    assert "DEFAULT_MODEL=pocket-edit runs without one" in done.stdout


def small_job() -> str:
    wishes = {"width": 80, "height": 64, "num_inference_steps": 2}
    return json.dumps({"input": {"prompt": "paint", "image_base64": photograph(), **wishes}})


@pytest.mark.parametrize("how", ["bare", "path", "inline"])
def test_the_local_test_edits_and_saves(tmp_path: Path, how: str) -> None:
    """Through the SDK's own local path, which alone takes neither of the first two."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "test_input.json").write_text(small_job())
    (folder / "other.json").write_text(small_job())
    arguments = {
        "bare": ["--test_input"],
        "path": ["--test_input", "other.json"],
        "inline": ["--test_input", small_job()],
    }[how]
    done = handler(tmp_path, *arguments, cwd=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for name, size in (("before", (64, 48)), ("after", (80, 64))):
        with Pillow.open(tmp_path / f"out/{name}.png") as picture:
            assert picture.size == size
    assert str(tmp_path / "out/after.png") in done.stdout
    assert "pocket-edit knows a few edits" in done.stdout
    assert "completed successfully" in done.stdout


@pytest.mark.parametrize(
    ("argument", "status", "words"),
    [
        ("missing.json", 2, "no such file"),
        ("{broken", 2, "not valid JSON"),
        ('{"input": {"prompt": "no picture"}}', 1, "Either image_url or image_base64 required"),
    ],
)
def test_a_local_test_that_fails_says_so_and_exits_non_zero(
    tmp_path: Path, argument: str, status: int, words: str
) -> None:
    """Scripts look at the status."""
    done = handler(tmp_path, "--test_input", argument)
    assert done.returncode == status
    assert words in done.stdout + done.stderr


def test_the_local_test_makes_a_picture_of_a_text(tmp_path: Path) -> None:
    """With a model that can: nothing went in, so only what came out is saved."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.serverless.worker_process", "0.01", "from-text"],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["after.png"]
    with Pillow.open(tmp_path / "out/after.png") as after:
        assert after.size == (80, 48)
    assert "completed successfully" in done.stdout


def test_a_job_may_carry_a_request_of_openais_form(tmp_path: Path) -> None:
    """RunPod makes such jobs of calls to its OpenAI address; ``response_format`` url has no meaning there."""
    for wishes, end in (({}, "completed successfully"), ({"response_format": "url"}, "ask for b64_json")):
        asked = {"prompt": "a fox", "size": "128x128", "num_inference_steps": 1} | wishes
        job = {"input": {"openai_route": "/v1/images/generations", "openai_input": asked}}
        done = subprocess.run(
            [sys.executable, "handler.py", "--test_input", json.dumps(job)],
            cwd=ROOT,
            env=environment(tmp_path, DEFAULT_MODEL="pocket-sdxl"),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert end in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]


def test_a_device_that_is_lost_in_the_local_test_is_told(tmp_path: Path) -> None:
    """The answer is the end: a signal could come before it, and the person would see only a status."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.serverless.worker_process", "0.01", "local"],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "failed with error: the device stopped working" in done.stdout + done.stderr


def http_server(tmp_path: Path, *command: str, **given: str) -> tuple["subprocess.Popen[str]", str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment(tmp_path, STANDALONE_MODE="1", API_PORT=str(port), **given),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process, f"http://127.0.0.1:{port}"


def patient_session() -> requests.Session:
    """It tries again until the server listens."""
    retry = requests.adapters.Retry(connect=20, backoff_factor=0.05, backoff_max=0.5)
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retry))
    return session


def test_the_http_mode_serves_and_drains(tmp_path: Path) -> None:
    """The same program, the same edges; it warns that nobody is asked for a key."""
    process, base = http_server(tmp_path, "handler.py", API_HOST="0.0.0.0")
    try:
        with patient_session() as session:
            health = session.get(f"{base}/health", timeout=10).json()
            assert health["model"] == "pocket-edit"
            answer = session.post(f"{base}/runsync", data=small_job(), timeout=60)
            assert answer.status_code == 200, answer.text[:500]
            assert answer.json()["prompt"] == "paint"
            health = session.get(f"{base}/health", timeout=10).json()
            assert (health["status"], health["jobs"]["succeeded"]) == ("ready", 1)
    finally:
        process.terminate()
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0, log
    assert "NO AUTHENTICATION" in log


def test_a_lost_device_ends_the_http_mode_as_a_failure(tmp_path: Path) -> None:
    """The caller is answered first; then whoever watches the process starts another one."""
    process, base = http_server(
        tmp_path, "-m", "tests.serverless.worker_process", "0.01", API_HOST="127.0.0.1"
    )
    try:
        with patient_session() as session:
            answer = session.post(f"{base}/runsync", json={"input": job("a", LOST)["input"]}, timeout=20)
            assert (answer.status_code, answer.json()["code"]) == (503, "device_lost")
        _, log = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 1, log
    assert "NO AUTHENTICATION" not in log, "it listens on loopback only"


def test_the_http_mode_throws_models_out_and_loads_them_again(tmp_path: Path) -> None:
    """From the route through the device's thread to the manager; whoever comes next waits for the load."""
    process, base = http_server(
        tmp_path, "-m", "tests.serverless.worker_process", "0.01", API_HOST="127.0.0.1"
    )
    purge = f"{base}/v1/models/purge"
    wish = {"prompt": "a house", "width": 256, "height": 256}
    try:
        with patient_session() as session:
            stream = session.post(f"{base}/generate-stream", json=wish, timeout=20)
            assert [line[:19] for line in stream.text.splitlines() if line][-2:] == [
                'data: {"type":"prog',
                'data: {"type":"comp',
            ]
            assert session.post(purge, timeout=20).json() == {"model_id": None, "removed": 1, "remaining": 0}
            assert session.post(purge, timeout=20).json()["note"] == "cache empty"
            assert session.get(f"{base}/health/gpu", timeout=20).json()["model_loaded"] is False
            assert session.get(f"{base}/ready", timeout=20).status_code == 200
            files = {"image": (ROOT / "assets/chelsea.jpg").read_bytes()}
            edited = session.post(f"{base}/edit", files=files, data={"prompt": "a hat"}, timeout=20)
            assert (edited.status_code, edited.headers["x-model"]) == (200, "painting")
            assert session.get(f"{base}/health/gpu", timeout=20).json()["model_loaded"] is True
    finally:
        process.terminate()
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0, log
