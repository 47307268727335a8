"""Any-view Depth Anything 3: what is asked of the optional package, and what is said without it.

The package is not among the tests' requirements: in its place stands a network of two layers with the same
names and the same order of axes. How the real one compares is in ``fixtures/compare_any_view.py``.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from core.errors import CapacityError
from pipelines.depth_anything import DepthAnything
from pipelines.depth_anything_views import official
from pipelines.manager import ModelManager
from pipelines.options import ModelOptions
from pipelines.registry import catalog
from tests.pipelines import edits
from tests.pipelines.looks import difference, look

OFFICIAL = {
    "__init__.py": "",
    "registry.py": "MODEL_REGISTRY = {'da3-base': 'base.yaml'}",
    "cfg.py": """
import types
import torch
def load_config(path):
    return types.SimpleNamespace(net=(3, 6, 3, 1, 1), head=(6, 1, 1), cam_dec=())
def create_object(config):
    return torch.nn.Conv2d(*config)
""",
    "model/__init__.py": "",
    "model/da3.py": """
import torch
class DepthAnything3Net(torch.nn.Module):
    def __init__(self, net, head, cam_dec=None, cam_enc=None):
        super().__init__()
        self.backbone, self.head = net, head
    def forward(self, x):
        rows, views = x.shape[:2]
        seen = self.backbone(x.flatten(0, 1)).unflatten(0, (rows, views))
        seen = seen + seen.mean(dim=1, keepdim=True)  # views of one row see each other
        return {"depth": self.head(seen.flatten(0, 1)).exp().unflatten(0, (rows, views))[:, :, 0]}
""",
}
# As released files have it: what is to be imported is named beside the figures.
CONFIG = {
    "__object__": {"path": "os", "name": "abort"},
    "net": {"__object__": {"path": "os", "name": "abort"}},
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """First on the path, and gone afterwards."""
    for name, source in OFFICIAL.items():
        file = tmp_path / "path/depth_anything_3" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    known = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("depth_anything_3")}
    monkeypatch.syspath_prepend(tmp_path / "path")
    yield
    for name in [name for name in sys.modules if name.startswith("depth_anything_3")]:
        del sys.modules[name]
    sys.modules.update(known)


def write(folder: Path, **spoiled: Any) -> Path:
    """A checkpoint in the released layout, camera included."""
    draw = torch.Generator().manual_seed(0)
    weights = {
        "model.backbone.weight": torch.randn(6, 3, 3, 3, generator=draw) * 0.2,
        "model.backbone.bias": torch.zeros(6),
        "model.head.weight": torch.randn(1, 6, 1, 1, generator=draw) * 0.4,
        "model.head.bias": torch.zeros(1),
        "model.cam_dec.fc_t.weight": torch.zeros(3, 6),
    }
    folder.mkdir()
    save_file({k: v for k, v in weights.items() if k not in spoiled}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_name": "da3-base", "config": CONFIG}))
    return folder


def acquire(folder: Path) -> DepthAnything:
    pipeline = ModelManager(catalog("depth-anything"), ModelOptions(model_dir=folder)).acquire("da3-base")
    assert isinstance(pipeline, DepthAnything)
    return pipeline


@pytest.mark.usefixtures("package")
def test_each_picture_is_a_row_with_one_view(tmp_path: Path) -> None:
    """Views of one row see each other, and callers' pictures must not."""
    pipeline = acquire(write(tmp_path / "checkpoint"))
    requests = [look("da3-base", number) for number in range(3)]
    states = pipeline.prepare(requests)
    pipeline.step(states)
    for request, result in zip(requests, pipeline.decode(states), strict=True):
        assert difference(result, edits.edit(pipeline, request)) < 2e-5
        assert getattr(result.output, "kind", None) == "depth"
        assert getattr(result.output, "unit", None) == "relative"
    together = torch.stack([state.inputs for state in states])
    network: Any = pipeline._network
    with torch.inference_mode():
        as_views = network.network(together[None])["depth"][0]
    assert states[0].raw is not None
    assert float((as_views[0] - states[0].raw.depth).abs().max()) > 1e-2


@pytest.mark.usefixtures("package")
def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    """They would be random."""
    folder = write(tmp_path / "checkpoint", **{"model.head.weight": None})
    with pytest.raises(CapacityError, match=r"head\.weight") as refused:
        acquire(folder)
    assert refused.value.code == "not_ready"


def test_without_the_package_it_is_said_what_to_install() -> None:
    """Its dependencies would bring an older numpy and a torchvision that breaks the other models."""
    with pytest.raises(CapacityError) as refused:
        official("no_such_module")
    assert refused.value.code == "not_ready"
    assert "pip install --no-deps -r requirements-da3.txt" in refused.value.message
    assert not refused.value.retryable
