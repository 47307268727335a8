"""``--check``: what would keep this worker from working here, and how to mend it. Loads no model."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests

from core.errors import RequestError
from core.spec import PipelineSpec
from serverless import access
from serverless.bucket import Bucket
from settings import Settings

TIMEOUT = (3.0, 5.0)  # seconds to connect, seconds to answer
LEAST_MEMORY_GB = 4.0  # below this the SDK's own fitness check ends the worker (rp_system_fitness.py)
LEAST_DISK_PART = 0.1  # as above

# A child process asks, so that this one stays light and survives a broken installation.
_ASK_DEVICE = """
import json, torch
found = torch.cuda.is_available()
print(json.dumps({
    "torch": torch.__version__, "cuda": torch.version.cuda, "found": found,
    "name": torch.cuda.get_device_name(0) if found else None,
    "gb": torch.cuda.get_device_properties(0).total_memory / 1e9 if found else 0,
}))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    subject: str
    good: bool
    sentence: str
    warning: bool = False  # it works, and a person should know

    def __str__(self) -> str:
        word = "warning" if self.warning else "ok     " if self.good else "PROBLEM"
        return f"{word}  {self.subject:<8} {self.sentence}"


def report(settings: Settings, spec: PipelineSpec) -> int:
    """Print every finding as it is made. 0 when all is well, else 1."""
    problems = 0
    for finding in findings(settings, spec):
        print(finding, flush=True)
        problems += not finding.good
    print(f"{problems} problem{'s' * (problems != 1)} found" if problems else "all is well")
    return 1 if problems else 0


def findings(settings: Settings, spec: PipelineSpec) -> Iterator[Finding]:
    yield Finding("config", True, f"serves {spec.name} ({spec.licence or 'licence unknown'})")
    if settings.standalone_mode:
        yield _port(settings)
        shut = settings.require_api_key  # to everybody, when there is something to say
        for sentence in access.warnings(settings):
            yield Finding("access", not shut, sentence, warning=not shut)
    yield from _weights(settings, spec)
    yield _memory()
    if settings.gpu_max_gib is not None and spec.vram_gb is not None:
        yield _budget(settings.gpu_max_gib, settings.precision_mode, spec)
    if settings.bucket_endpoint_url or settings.bucket_access_key_id or settings.bucket_secret_access_key:
        yield _bucket(settings)
    yield _device(spec)  # last: it takes seconds


def _port(settings: Settings) -> Finding:
    where = f"{settings.api_host}:{settings.api_port}"
    try:
        with socket.create_server((settings.api_host, settings.api_port)):
            return Finding("port", True, f"{where} is free")
    except OSError as error:
        return Finding("port", False, f"{where} cannot be used ({error.strerror}); set API_PORT or API_HOST")


def _weights(settings: Settings, spec: PipelineSpec) -> Iterator[Finding]:
    elsewhere = settings.model_dir is not None or spec.source.startswith("builtin:")
    if settings.model_revision is not None and elsewhere:
        sentence = (
            "MODEL_REVISION names a commit of the hub, and the model does not come from there; unset it"
        )
        yield Finding("revision", False, sentence)
    if settings.model_dir is not None:
        there = (settings.model_dir / spec.index).is_file()
        yield Finding(
            "weights",
            there,
            f"MODEL_DIR holds {spec.index}"
            if there
            else f"MODEL_DIR holds no {spec.index}; point it at the folder of a checkpoint of {spec.name}",
        )
        return
    if spec.source.startswith("builtin:"):
        yield _disk(settings.cache_dir.expanduser(), 0.1, "CACHE_DIR")
        yield Finding("weights", True, f"{spec.name} is in this repository")
        return
    repository, revision = spec.source_at(settings.model_revision)
    named = f"{repository}@{revision}" if revision else repository
    if _cached(settings.hub_cache / f"models--{repository.replace('/', '--')}", revision, spec.index):
        yield Finding("weights", True, f"{named} is in the cache")
    elif settings.local_only:
        yield Finding(
            "weights",
            False,
            f"{named} is not in {settings.hub_cache} and LOCAL_ONLY=1 forbids fetching it; "
            "set MODEL_DIR, or fetch it once with LOCAL_ONLY=0",
        )
    else:
        yield _disk(settings.hub_cache, spec.vram_gb or 1.0, "HF_HOME")
    if not settings.local_only:
        yield _hub(settings, repository, f"{revision or 'main'}/{spec.index}")


def _cached(folder: Path, revision: str | None, index: str) -> bool:
    """Whether a commit, tag or branch was fetched before; any commit where none is named."""
    if revision is None:
        return any(folder.glob(f"snapshots/*/{index}"))
    try:
        commit = (folder / "refs" / revision).read_text().strip()
    except OSError:
        commit = revision
    return (folder / "snapshots" / commit / index).is_file()


def _disk(folder: Path, needed_gb: float, variable: str) -> Finding:
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    usage = shutil.disk_usage(existing)
    sentence = f"{usage.free / 1e9:.0f} GB free at {existing}"
    if usage.free < needed_gb * 1e9:
        remedy = f"about {needed_gb:.0f} GB are needed; free some or set {variable} to a larger disk"
        return Finding("disk", False, f"{sentence}, {remedy}")
    if usage.free < LEAST_DISK_PART * usage.total:
        remedy = (
            "under a tenth, at which the RunPod SDK ends a worker; free some or set RUNPOD_MIN_DISK_PERCENT"
        )
        return Finding("disk", False, f"{sentence}, {remedy}")
    return Finding("disk", True, sentence)


def _hub(settings: Settings, repository: str, file: str) -> Finding:
    """Whether a file of the checkpoint can be had: of a gated one the hub tells its facts to everybody.

    file: its revision and its name.
    """
    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    try:
        answer = requests.head(
            f"{settings.hf_endpoint.rstrip('/')}/{repository}/resolve/{file}",
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=TIMEOUT,
            allow_redirects=True,  # a renamed repository; another host is not shown the token
        )
    except requests.RequestException as error:
        return Finding(
            "hub",
            False,
            f"{settings.hf_endpoint} cannot be reached ({type(error).__name__}); check the network and "
            "HF_ENDPOINT, or set LOCAL_ONLY=1 when the weights are here already",
        )
    match answer.status_code:
        case 200:
            return Finding("hub", True, f"{repository} can be fetched")
        case 401 | 403 if token:
            return Finding(
                "hub",
                False,
                f"the hub refuses HF_TOKEN for {repository}; renew the token or accept the model's licence "
                "on its page",
            )
        case 401 | 403:
            return Finding("hub", False, f"{repository} needs a token; accept its licence, then set HF_TOKEN")
        case status:
            return Finding(
                "hub", False, f"the hub answers {status} for {repository}; check HF_ENDPOINT, try later"
            )


def _memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1e6
    except (OSError, StopIteration, ValueError):
        return Finding("memory", True, "unknown on this system")
    sentence = f"{available:.1f} GB available"
    if available >= LEAST_MEMORY_GB:
        return Finding("memory", True, sentence)
    remedy = "the RunPod SDK ends a worker below 4 GB; choose a larger machine or set RUNPOD_MIN_MEMORY_GB"
    return Finding("memory", False, f"{sentence}; {remedy}")


def _budget(gib: float, mode: str, spec: PipelineSpec) -> Finding:
    """What a row says it needs is of 16-bit weights, and the others are measured when they are loaded; a
    vision model's stay as they are."""
    assert spec.vram_gb is not None
    allowed = gib * 2**30 / 1e9
    whole = spec.vision is not None
    if (whole or mode in ("bf16", "fp16")) and spec.vram_gb > allowed:
        remedy = "raise it" if whole else "raise it, or set PRECISION_MODE=8bit"
        return Finding(
            "budget",
            False,
            f"{spec.name} needs about {spec.vram_gb:.1f} GB and GPU_MAX_GIB={gib:g} allows {allowed:.1f} GB; "
            f"{remedy}",
        )
    return Finding("budget", True, f"GPU_MAX_GIB={gib:g} for all loaded models together")


def _device(spec: PipelineSpec) -> Finding:
    try:
        child = subprocess.run(  # noqa: S603 - this interpreter, and a constant
            [sys.executable, "-c", _ASK_DEVICE], capture_output=True, text=True, timeout=120, check=True
        )
        device = json.loads(child.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return Finding("device", False, "torch cannot be imported; run make run, or pip install torch")
    if device["found"]:
        sentence = f"{device['name']} with {device['gb']:.0f} GB, torch {device['torch']}"
        if spec.vram_gb and device["gb"] < spec.vram_gb:
            remedy = f"{spec.name} needs about {spec.vram_gb:.0f} GB; choose a larger card"
            return Finding("device", False, f"{sentence}; {remedy}")
        return Finding("device", True, sentence)
    if not spec.needs_gpu:
        return Finding("device", True, f"no GPU; {spec.name} runs on the CPU, torch {device['torch']}")
    if device["cuda"] is None:
        reason = f"torch {device['torch']} is a build for CPUs"
    elif shutil.which("nvidia-smi"):
        reason = f"the driver does not suit CUDA {device['cuda']} of torch {device['torch']}; update it"
    else:
        reason = "there is no NVIDIA driver here"
    return Finding(
        "device", False, f"{spec.name} needs a GPU and {reason}; DEFAULT_MODEL=pocket-edit runs without one"
    )


def _bucket(settings: Settings) -> Finding:
    given = {
        "BUCKET_ENDPOINT_URL": settings.bucket_endpoint_url,
        "BUCKET_ACCESS_KEY_ID": settings.bucket_access_key_id,
        "BUCKET_SECRET_ACCESS_KEY": settings.bucket_secret_access_key,
    }
    missing = [name for name, value in given.items() if not value]
    if missing:
        return Finding("bucket", False, f"{', '.join(missing)} missing; set all three or none")
    bucket = Bucket.of_settings(settings)
    assert bucket is not None
    try:
        bucket.sign("check", "image/png")
        requests.get(bucket.endpoint, timeout=TIMEOUT, allow_redirects=False)
    except (RequestError, requests.RequestException) as error:
        return Finding(
            "bucket",
            False,
            f"BUCKET_ENDPOINT_URL cannot be used ({type(error).__name__}); check it and the network",
        )
    return Finding("bucket", True, "its endpoint answers; the keys are tried with the first large result")
