"""Weight files are checked by their headers, and read with bytes counted."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.errors import CapacityError
from pipelines.options import Silent
from pipelines.reading import PIECE, read_ahead
from pipelines.shards import survey, weight_files

INDEX = "diffusion_pytorch_model.safetensors.index.json"
ONE, TWO = (f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2))


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """A transformer in two shards, larger together than one piece."""
    folder = tmp_path / "checkpoint" / "transformer"
    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(5 * 2**20), "b": torch.zeros(3)}, folder / ONE)
    save_file({"c": torch.zeros(7, 2, dtype=torch.bfloat16)}, folder / TWO)
    places = {"a": ONE, "b": ONE, "c": TWO}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


class Counted(Silent):
    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def bytes(self, done: int, total: int) -> None:
        self.told.append((done, total))


def test_weights_are_counted_without_being_read(part: Path, checkpoint: Path) -> None:
    """What a model is going to take must be known before another one is thrown out for it."""
    (found,) = survey(part.parent).values()
    assert found.weights == 5 * 2**20 + 3 + 14
    assert found.nbytes == sum((part / name).stat().st_size for name in (ONE, TWO))
    assert set(survey(checkpoint)) == {"text_encoder", "transformer", "vae"}


def test_reading_tells_every_piece(part: Path) -> None:
    """From nothing to everything, never back."""
    counted = Counted()
    read_ahead(part, counted)
    total = sum((part / name).stat().st_size for name in (ONE, TWO))
    done = [done for done, _ in counted.told]
    assert {total for _, total in counted.told} == {total}
    assert (done[0], done[-1]) == (0, total)
    assert done == sorted(done)
    assert max(b - a for a, b in pairwise(done)) <= PIECE


def cut(part: Path) -> None:
    data = (part / ONE).read_bytes()
    (part / ONE).write_bytes(data[:-1])


def cut_to_nothing(part: Path) -> None:
    (part / ONE).write_bytes(b"")


def scramble(part: Path) -> None:
    data = (part / ONE).read_bytes()
    (part / ONE).write_bytes(data[:8] + b"\0" * 20 + data[28:])


def point_out(part: Path) -> None:
    (part / INDEX).write_text(json.dumps({"weight_map": {"a": "../vae/x.safetensors"}}))


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (lambda part: (part / TWO).unlink(), f"transformer/{TWO} is missing"),
    (cut, f"transformer/{ONE} has 20971"),
    (cut_to_nothing, f"transformer/{ONE} is not a safetensors file"),
    (scramble, f"transformer/{ONE} is not a safetensors file"),
    (lambda part: shutil.copy(part / TWO, part / ONE), f"transformer/{ONE} lacks 2 of the tensors"),
    (lambda part: (part / INDEX).write_text("{"), f"transformer/{INDEX} is not an index"),
    (lambda part: (part / INDEX).write_text("[]"), f"transformer/{INDEX} is not an index"),
    (point_out, f"transformer/{INDEX} names a file outside its folder"),
]


@pytest.mark.parametrize(("break_it", "words"), FAULTS)
def test_a_broken_checkpoint_names_the_file_and_the_remedy(
    part: Path, break_it: Callable[[Path], object], words: str
) -> None:
    """An interrupted copy is the commonest fault; the libraries' own words name a path or nothing."""
    assert len(weight_files(part)) == 2
    break_it(part)
    with pytest.raises(CapacityError) as caught:
        survey(part.parent)
    assert words in caught.value.message
    assert "handler.py download" in caught.value.message
    assert str(part.parent) not in caught.value.message
    assert (caught.value.code, caught.value.retryable) == ("not_ready", False)
