"""The rows are facts about models, readable without any model library."""

import importlib
import subprocess
import sys

import pytest

from core.errors import RequestError
from core.request import Task
from core.spec import PipelineSpec
from pipelines.registry import SPECS, catalog
from tests.pipelines.edits import picture


def test_registry_and_manager_load_no_model_library() -> None:
    """The server must accept connections while torch is still importing, or absent."""
    code = (
        "import sys, pipelines.registry, pipelines.manager; pipelines.registry.catalog('pocket-edit');"
        "sys.exit(bool({'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_row_names_a_factory_that_exists(spec: PipelineSpec) -> None:
    """A misspelt factory would show only when the model is first asked for."""
    module, _, function = spec.factory.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("Qwen/Qwen-Image-Edit", "qwen-image-edit"),
        ("qwen/qwen-image-edit-2509", "qwen-image-edit-2509"),
        ("Qwen/Qwen-Image-Edit-2511", "qwen-image-edit-2511"),
        ("FireRedTeam/FireRed-Image-Edit-1.0", "firered-image-edit-1.0"),
        ("FireRedTeam/FireRed-Image-Edit-1.1", "firered-image-edit-1.1"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "stable-diffusion-xl-base-1.0"),
        ("stabilityai/sdxl-turbo", "sdxl-turbo"),
        ("stabilityai/sdxl-lightning", "sdxl-lightning"),
        (None, "pocket-edit"),
    ],
)
def test_hub_ids_are_understood(asked: str | None, meant: str) -> None:
    """Existing settings and clients name models by their hub ids."""
    everything = frozenset(spec.name for spec in SPECS)
    assert catalog("pocket-edit", allowed=everything).get(asked).name == meant


def test_what_nobody_allowed_is_not_served() -> None:
    """One request for it would throw out the model in use and download tens of gigabytes."""
    rows = catalog("pocket-edit", allowed=frozenset({"Qwen/Qwen-Image-Edit-2511"}))
    assert [spec.name for spec in rows] == ["qwen-image-edit-2511", "pocket-edit"]
    with pytest.raises(RequestError):
        rows.get("qwen-image-edit-2509")
    with pytest.raises(RequestError):
        catalog("pocket-edit", allowed=frozenset({"qwen-image-edt"}))


def test_the_operators_figures_replace_the_rows() -> None:
    """And reach requests; what is not given stays the row's own."""
    rows = catalog("qwen-image-edit-2509", reference_area=512 * 512, steps=8)
    request = rows.default.request(id="r", task=Task.EDIT, prompt="p", images=(picture(0),))
    assert request.reference_sizes == ((512, 512),)
    assert (request.steps, request.cfg) == (8, 4.0)
    assert request.condition_sizes == ((384, 384),)


def test_the_first_release_sees_its_picture_at_reference_size() -> None:
    """diffusers' QwenImageEditPipeline shows the text encoder the picture of 1024 x 1024 pixels' area."""
    row = catalog("qwen-image-edit").default
    request = row.request(id="r", task=Task.EDIT, prompt="p", images=(picture(0),))
    assert request.condition_sizes == request.reference_sizes == ((1024, 1024),)
    with pytest.raises(RequestError):
        row.request(id="r", task=Task.EDIT, prompt="p", images=(picture(0), picture(1)))
