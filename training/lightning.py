"""Stage 6: a LoRA that makes the few steps of the Lightning schedule better; in lightx2v's key layout.

Only the times that such a schedule visits are trained, two steps' and four steps' alike; the transformer
itself is frozen.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor

from pipelines.pocket import architecture
from training.pictures import PictureSource
from training.run import Run
from training.transformer import LIGHTNING, TextBank, Trainer, load_codec, load_reader, measure, velocity

TARGET = Path("pipelines/pocket/weights/lightning.safetensors")
_RANK = 8
_LAYERS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "img_mlp.net.0.proj",
    "img_mlp.net.2",
)


class Adapted(torch.nn.Module):
    """A frozen linear layer and its low-rank change; alpha equals the rank."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = torch.nn.Parameter(torch.randn(_RANK, layer.in_features) * layer.in_features**-0.5)
        self.up = torch.nn.Parameter(torch.zeros(layer.out_features, _RANK))

    def forward(self, x: Tensor) -> Tensor:
        plain: Tensor = self.layer(x)
        return plain + F.linear(F.linear(x, self.down), self.up)


def adapt(model: Any) -> dict[str, Adapted]:
    """Put an adapter at every chosen layer of ``model``, in place; by the layer's name."""
    model.requires_grad_(False)
    names = [
        name
        for name, layer in model.named_modules()
        if name.endswith(_LAYERS) and isinstance(layer, torch.nn.Linear)
    ]
    adapters = {name: Adapted(model.get_submodule(name)) for name in names}
    for name, adapter in adapters.items():
        model.set_submodule(name, adapter)
    return adapters


def layout(adapters: dict[str, Adapted]) -> dict[str, Tensor]:
    """Keys as in lightx2v's Qwen-Image-Lightning files."""
    weights: dict[str, Tensor] = {}
    for name, adapter in adapters.items():
        weights[f"{name}.lora_down.weight"] = adapter.down.detach().bfloat16().contiguous()
        weights[f"{name}.lora_up.weight"] = adapter.up.detach().bfloat16().contiguous()
        weights[f"{name}.alpha"] = torch.tensor(float(_RANK), dtype=torch.bfloat16)
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    codec, reader = load_codec(), load_reader()
    model = QwenImageTransformer2DModel(**architecture.TRANSFORMER)
    model.load_state_dict(Run.weights("transformer"))
    torch.manual_seed(0)
    adapters = adapt(model)
    run = Run("lightning", model, steps=arguments.steps, rate=arguments.rate, average=0.99)
    trainer = Trainer(codec, TextBank(reader, PictureSource(seed=9)))
    times = torch.tensor(LIGHTNING)
    for step in run:
        if step == run.first:
            trainer.fill(step + 3_000_000)
        torch.manual_seed(step)
        pairs, texts = trainer.batch(step, arguments.batch)
        time = times[torch.randint(len(times), (len(pairs.target),))]
        noise = torch.randn_like(pairs.target)
        at = time[:, None, None]
        moved = velocity(model, (1 - at) * pairs.target + at * noise, time, pairs.references, texts)
        run.learn(((moved - (noise - pairs.target)).square() * codec.weight).mean())
        if run.due:
            with run.averaged():
                figures = measure(model, codec, reader, 128, 3)
            run.note(mean=sum(figures.values()) / len(figures))
    with run.averaged():
        save_file(layout(adapters), TARGET)
    TARGET.chmod(0o644)


if __name__ == "__main__":
    main()
