"""The pocket checkpoint, built once a session, as the worker serves it; and photographs it never saw."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipelines.options import ModelOptions
from training.editor import Editor

ASSETS = Path(__file__).parents[2] / "assets"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def options(tmp_path_factory: pytest.TempPathFactory) -> ModelOptions:
    return ModelOptions(cache_dir=tmp_path_factory.mktemp("cache"), condition_cache_bytes=0)


@pytest.fixture(scope="session")
def editor(options: ModelOptions) -> Editor:
    return Editor(options=options)


@pytest.fixture(scope="session")
def fused(options: ModelOptions) -> Editor:
    return Editor(options=options, lightning=True)


@pytest.fixture(scope="session")
def photos() -> Tensor:
    """float32 [2, 3, 256, 256] in 0 ... 1: a cat and a cup of coffee, both held out of training."""
    squares = []
    for name in ("chelsea.jpg", "coffee.jpg"):
        with Image.open(ASSETS / name) as photo:
            left = (photo.width - photo.height) // 2
            square = photo.convert("RGB").crop((left, 0, left + photo.height, photo.height))
        squares.append(torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255)
    return torch.stack(squares)
