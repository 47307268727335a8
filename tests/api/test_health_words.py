"""/health and / as clients of older servers read them."""

import pytest

from api.app import ApiOptions
from core.service import Health, LoadedModel
from core.stats import ModelCounts, Stats
from tests.api.serving import serving

STATES = ("ready", "loading", "draining", "failed")
WORDS = {
    "worker": STATES,
    "firered": ("ok", "ok", "draining", "failed"),
    "sdxl": ("ok", "ok", "draining", "failed"),
    "vision": ("healthy", "healthy", "unhealthy", "unhealthy"),
    "gateway": ("healthy", "degraded", "unhealthy", "unhealthy"),
}
PATHS = {"firered": "/firered/health", "sdxl": "/sdxl/health", "vision": "/vision/health"}


@pytest.mark.parametrize("profile", WORDS)
def test_each_profile_has_its_words(profile: str) -> None:
    """Monitors compare strings; whatever the word, the status is 200."""
    with serving(ApiOptions(profile=profile)) as running:
        for state, word in zip(STATES, WORDS[profile], strict=True):
            running.probe.say(state)
            answer = running.client.get("/health")
            assert (answer.status, answer.json()["status"]) == (200, word)
            assert answer.json()["state"] == state
            for other, path in PATHS.items():
                said = running.client.get(path).json()["status"]
                assert said == WORDS[other][STATES.index(state)]


def test_every_key_of_the_older_servers_is_there() -> None:
    """The text-to-image page asks for gateway, text2image_server, model_loaded and cuda_available; others
    for gpu_memory_mb, loaded_models or available_memory_gb."""
    stats = Stats(models=ModelCounts(memory={"allocated": 3 * 2**20, "free": 5_000_000_000}))
    with serving(ApiOptions(profile="gateway"), stats=lambda: stats) as running:
        running.probe.health = Health(
            state="ready",
            model="painter",
            gpu_available=True,
            counts={"queued": 2, "running": 1},
            models=(LoadedModel(name="painter", bytes=1, precision="bf16"),),
        )
        body = running.client.get("/health").json()
    assert (body["gateway"], body["gpu_memory_mb"], body["available_memory_gb"]) == ("running", 3.0, 5.0)
    assert (body["model_loaded"], body["loaded_models"]) == (True, ["painter"])
    assert body["text2image_server"] == {
        "status": "healthy",
        "model_loaded": True,
        "cuda_available": True,
        "current_queue_size": 2,
        "active_generations": 1,
    }


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/html"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("", "application/json"),
    ],
)
def test_only_browsers_get_a_page(accept: str, kind: str) -> None:
    """Clients that accept anything read JSON there."""
    with serving() as running:
        answer = running.client.request("GET", "/", headers={"Accept": accept} if accept else {})
    assert answer.status == 200
    assert answer.headers["content-type"].startswith(kind)
    assert b"painter" in answer.body
