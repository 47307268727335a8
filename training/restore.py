"""Puts the committed weights where the stages look for earlier ones, so that refining can go on from them.

The inverse of ``training/export.py``; what bf16 rounded stays rounded, and optimisers start anew.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from training.export import TARGET
from training.run import FOLDER
from training.text import TextReader


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.manual_seed(0)
    reader = TextReader()  # its heads are not in the files, and no later stage reads them
    state: dict[str, Tensor] = reader.state_dict()
    kept = _read("text_encoder")
    state |= {f"encoder.{name}": weight for name, weight in kept.items()}
    state["encoder.lm_head.weight"] = kept["model.language_model.embed_tokens.weight"]
    _keep("text", state)
    _keep("transformer", _read("transformer"))
    _keep("autoencoder", {f"model.{name}": weight for name, weight in _read("vae").items()})


def _read(part: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = load_file(TARGET / f"{part}.safetensors")
    return {name: weight.float() for name, weight in weights.items()}


def _keep(name: str, weights: dict[str, Any]) -> None:
    """As a finished run would. Raises ``SystemExit`` rather than overwrite one."""
    path: Path = FOLDER / name / "weights.pt"
    if path.exists():
        raise SystemExit(f"{path} is there already; move it away to go on from the committed weights")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights, path)
    print(f"{len(weights)} tensors  {path}")


if __name__ == "__main__":
    main()
