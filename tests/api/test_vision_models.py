"""Which vision models are in memory, and loading and unloading them, as the service's clients ask."""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from api.app import AccessOptions, ApiOptions
from api.keys import KeyRing
from batching.mux import BatchMux, BatchPolicy
from core.errors import CapacityError
from core.service import Health, LoadedModel, port
from pipelines.manager import ModelManager
from pipelines.options import ModelOptions
from pipelines.registry import catalog
from tests.api.findings import VISION
from tests.api.serving import Answer, Served, serving
from tests.api.test_hostile import SECRET, check_refusal

JSON = {"Content-Type": "application/json"}
KINDS = ["sam3", "grounding_dino", "depth_anything", "dinov3"]


@dataclass
class Memory:
    """Models that are in it, as a manager would have them; ``fault`` is raised by a load."""

    names: list[str] = field(default_factory=list)
    fault: CapacityError | None = None

    async def load(self, name: str) -> None:
        if self.fault is not None:
            raise self.fault
        self.names.append(name)

    async def purge(self, name: str | None) -> tuple[int, int]:
        gone = [one for one in self.names if name in (None, one)]
        self.names = [one for one in self.names if one not in gone]
        return len(gone), len(self.names)


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def seeing(memory: Memory) -> Iterator[Served]:
    api = ApiOptions(profile="vision")
    with serving(api, catalog=VISION, load=memory.load, purge=memory.purge) as running:
        yield running


def post(served: Served, path: str, body: object = None) -> Answer:
    return served.client.request("POST", path, b"" if body is None else json.dumps(body).encode(), JSON)


def in_memory(served: Served, memory: Memory) -> Any:
    """What /models/status says once health shows what the memory holds."""
    models = tuple(LoadedModel(name=name, bytes=3 * 2**20, precision="float32") for name in memory.names)
    served.probe.health = replace(served.probe.health, models=models)
    return served.client.get("/models/status").json()


def test_the_status_of_a_server_that_has_loaded_nothing(seeing: Served, memory: Memory) -> None:
    """It names what would be loaded, where the first server failed."""
    status = in_memory(seeing, memory)
    assert list(status["models"]) == KINDS
    assert status["models"]["sam3"] == {
        "model_type": "sam3",
        "model_id": "org/cutter",
        "device": "cuda",
        "loaded": False,
        "memory_mb": None,
    }
    assert status["total_memory_mb"] is None


def test_load_and_unload(seeing: Served, memory: Memory) -> None:
    """By kind, or by the name of one of its models; what is not there is unloaded already."""
    answer = post(seeing, "/models/load", {"model_type": "sam3", "device": "cuda"})
    assert (answer.status, answer.json()["message"]) == (200, "Model sam3 loaded successfully")
    assert answer.json()["model_info"]["model_type"] == "sam3"
    post(seeing, "/models/load", {"model_type": "depth_anything", "model_id": "org/diver"})
    assert memory.names == ["cutter", "diver"]
    status = in_memory(seeing, memory)
    assert [kind for kind in KINDS if status["models"][kind]["loaded"]] == ["sam3", "depth_anything"]
    assert status["total_memory_mb"] == 6.0
    assert post(seeing, "/models/unload", {"model_type": "sam3"}).json() == {
        "message": "Model sam3 unloaded successfully"
    }
    assert memory.names == ["diver"]
    assert post(seeing, "/models/unload", {"model_type": "dinov3"}).status == 200
    assert post(seeing, "/models/unload-all").json() == {"message": "All models unloaded successfully"}
    assert memory.names == []


def test_health_names_kinds(seeing: Served, memory: Memory) -> None:
    """Its clients know no other names; everything else of /health is there too."""
    memory.names = ["finder", "diver"]
    in_memory(seeing, memory)
    for path in ("/health", "/vision/health"):
        told = seeing.client.get(path).json()
        assert (told["status"], told["gpu_available"]) == ("healthy", True)
        assert told["loaded_models"] == ["grounding_dino", "depth_anything"]
        assert "available_memory_gb" in told
    root = seeing.client.get("/").json()
    assert {"message", "version", "docs"} <= root.keys()
    assert root["version"] == tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]


def test_a_load_that_fails_says_why(seeing: Served, memory: Memory) -> None:
    """Which licence to accept, for one."""
    memory.fault = CapacityError("not_ready", "accept the licence of facebook/sam3", retryable=False)
    answer = post(seeing, "/models/load", {"model_type": "sam3"})
    assert (answer.status, answer.json()["detail"]) == (503, "accept the licence of facebook/sam3")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("load", {}, 422),
        ("load", {"model_type": SECRET}, 422),
        ("load", {"model_type": "sam3", "model_id": SECRET}, 404),
        ("load", {"model_type": "sam3", "model_id": "diver"}, 422),
        ("load", {"model_type": "sam3", SECRET: 1}, 422),
        ("unload", {"model_type": 1}, 422),
        ("unload", [], 422),
        ("unload-all", {"model_type": "sam3"}, 422),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(seeing: Served, path: str, body: object, status: int) -> None:
    """In ``detail``, and nothing is loaded or thrown out."""
    answer = post(seeing, f"/models/{path}", body)
    assert answer.status == status, answer.body
    assert answer.json()["detail"]
    check_refusal(answer)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", f"/models/{path}") for path in ("load", "unload", "unload-all")),
        ("GET", "/models/status"),
        *(("POST", f"/inference/{slug}") for slug in ("sam3", "dinov3")),
        ("POST", "/jobs/submit/sam3"),
        ("GET", "/jobs"),
        ("GET", "/jobs/x"),
    ],
)
def test_nothing_of_it_is_public(method: str, path: str) -> None:
    """Anybody could throw models out, or read what others were sent."""
    keys = KeyRing.of(True, ["the-key"])
    with serving(ApiOptions(profile="vision"), catalog=VISION, access=AccessOptions(keys=keys)) as running:
        assert running.client.request(method, path).status == 401
        assert running.client.get("/vision/health").status == 200


def test_a_real_model_is_loaded_and_thrown_out(tmp_path: Path) -> None:
    """Through the mux and the manager, between the batches of whoever asks meanwhile."""
    rows = catalog("pocket-dinov3")
    models = ModelManager(rows, ModelOptions(cache_dir=tmp_path))
    with BatchMux(models.acquire, BatchPolicy()) as mux:

        async def load(name: str) -> None:
            mux.warm(name).result(60)

        async def purge(name: str | None) -> tuple[int, int]:
            return mux.between(models.evict, name).result(60)

        with serving(submit=port(mux.submit), catalog=rows, load=load, purge=purge) as running:
            running.probe.health = Health(state="ready", model="pocket-dinov3")
            assert post(running, "/models/load", {"model_type": "dinov3"}).status == 200
            assert models.status().loaded == ("pocket-dinov3",)
            assert post(running, "/models/unload-all").status == 200
            assert models.status().loaded == ()
            missing = post(running, "/models/load", {"model_type": "sam3"})
            assert (missing.status, missing.json()["detail"]) == (
                404,
                "no model here can segment; add one to ALLOWED_MODELS",
            )
