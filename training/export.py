"""Stage 6: writes what was trained into ``pipelines/pocket/weights``: bf16 safetensors and a few numbers.

The autoencoder is kept as trained, without the taps in time that are zero; the builder puts them back.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from training.run import FOLDER, Run
from training.transformer import load_codec, load_refined

TARGET = Path("pipelines/pocket/weights")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    TARGET.mkdir(parents=True, exist_ok=True)
    decoder = (FOLDER / "decoder" / "weights.pt").exists()
    autoencoder = Run.weights("decoder" if decoder else "autoencoder")
    parts = {
        "vae": {name.removeprefix("model."): weight for name, weight in autoencoder.items()},
        "text_encoder": {
            name.removeprefix("encoder."): weight
            for name, weight in Run.weights("text").items()
            if name.startswith("encoder.") and "lm_head" not in name
        },
        "transformer": load_refined(),
    }
    for part, weights in parts.items():
        save_file(_bf16(weights), TARGET / f"{part}.safetensors")
    codec = load_codec()
    latents = {
        "latents_mean": [round(value, 4) for value in codec.mean.tolist()],
        "latents_std": [round(value, 4) for value in codec.deviation.tolist()],
    }
    (TARGET / "latents.json").write_text(json.dumps(latents, indent=2) + "\n")
    for path in sorted(TARGET.iterdir()):
        path.chmod(0o644)
        print(f"{path.stat().st_size / 1e6:7.2f} MB  {path}")


def _bf16(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.to(torch.bfloat16).contiguous() for name, weight in sorted(weights.items())}


if __name__ == "__main__":
    main()
