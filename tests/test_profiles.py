"""Defaults of a profile: an operator of an older server need not say again what that one served."""

import os
from pathlib import Path

import pytest

import settings
from variables.profiles import DEFAULTS

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_the_vision_profile_serves_four_models_at_once() -> None:
    """Those of the older service, under the names they have here."""
    os.environ["API_PROFILE"] = "Vision"
    loaded = settings.load()
    assert loaded.default_model == "sam3"
    assert loaded.allowed_models == {"sam3", "grounding-dino-base", "da3-base", "dinov3-convnext-tiny"}
    assert loaded.max_models_cache == 4


def test_what_is_set_wins() -> None:
    """Also where it is set to what it would be without a profile."""
    os.environ |= {
        "API_PROFILE": "vision",
        "MODEL_ID": "pocket-dinov3",
        "ALLOWED_MODELS": "pocket-dinov3",
        "MAX_MODELS_CACHE": "1",
    }
    loaded = settings.load()
    assert (loaded.default_model, loaded.max_models_cache) == ("pocket-dinov3", 1)
    assert loaded.allowed_models == {"pocket-dinov3"}


def test_other_profiles_change_nothing() -> None:
    """Their servers had one model, which a variable of theirs names."""
    os.environ["API_PROFILE"] = "sdxl"
    assert settings.load().default_model == settings.Settings.model_fields["default_model"].default


def test_every_default_is_of_a_variable_and_acceptable() -> None:
    """A misspelt field would change nothing, and nobody would hear of it."""
    for profile, values in DEFAULTS.items():
        assert settings.Settings(api_profile=profile, **values).model_dump().items() >= values.items()


@pytest.mark.parametrize(
    ("others", "folder"),
    [
        ({}, "/srv/weights/content/hf_cache/hub"),
        ({"HF_HOME": "/srv/home"}, "/srv/home/hub"),
        ({"HF_HUB_CACHE": "/srv/hub"}, "/srv/hub"),
    ],
    ids=["alone", "beside HF_HOME", "beside HF_HUB_CACHE"],
)
def test_the_older_servers_checkpoints_are_found(others: dict[str, str], folder: str) -> None:
    """Where it downloaded them to, unless the hub's own variables say otherwise; its client is told too."""
    os.environ |= {"HF_ROOT_FOLDER": "/srv/weights"} | others
    assert settings.load().hub_cache == Path(folder)
    told = os.environ.get("HF_HUB_CACHE") or f"{os.environ['HF_HOME']}/hub"
    assert told == folder
