"""Stage 7: a LoRA for the Lightning schedule of four steps and of two; in lightx2v's key layout.

It learns on its own way: some steps of the schedule from noise, then the error of the picture that the next
one points to. Transformer and autoencoder are frozen.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor

from pipelines.pocket import architecture
from training.latents import LatentCodec, Pairs
from training.pictures import PictureSource
from training.run import Run
from training.transformer import (
    LIGHTNING,
    TextBank,
    Trainer,
    load_codec,
    load_reader,
    load_refined,
    measure,
    velocity,
)

TARGET = Path("pipelines/pocket/weights/lightning-4steps.safetensors")
RANK, ALPHA = 8, 4.0  # the change counts by alpha / rank
TWO_STEPS = (1.0, 0.75)  # sigmas of 2 steps under a shift of 3
_FLOOR = 1e-4  # of the squared error, at 40 dB: nobody sees what is better
_LAYERS = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "img_mlp.net.0.proj",
    "img_mlp.net.2",
    "txt_mlp.net.0.proj",
    "txt_mlp.net.2",
)  # of every block: those of lightx2v's files


class Adapted(torch.nn.Module):
    """A frozen linear layer and its low-rank change."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = torch.nn.Parameter(torch.randn(RANK, layer.in_features) * layer.in_features**-0.5)
        self.up = torch.nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        plain: Tensor = self.layer(x)
        return plain + F.linear(F.linear(x, self.down), self.up) * (ALPHA / RANK)


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
        weights[f"{name}.alpha"] = torch.tensor(ALPHA, dtype=torch.bfloat16)
    return weights


def way_loss(model: Any, codec: LatentCodec, pairs: Pairs, texts: tuple[Tensor, Tensor], step: int) -> Tensor:
    """Minus the PSNR, in nats, of the picture that a step of a schedule points to, after those before."""
    sigmas = TWO_STEPS if step % 2 else LIGHTNING
    last = random.Random(step).randrange(len(sigmas))
    latents = torch.randn_like(pairs.target)
    for start, end in zip(sigmas[: last + 1], (*sigmas[1 : last + 1], 0.0), strict=True):
        time = torch.full((len(latents),), start)
        with torch.set_grad_enabled(end == 0.0):
            moved = velocity(model, latents, time, pairs.references, texts, pairs.grid)
            latents = latents + (end - start) * moved
    pictures = codec.decode(latents, pairs.grid)
    shown = pictures.clamp(0, 1)
    # What will be clamped hardly counts; it must not run away either.
    error = shown - pairs.exact.float() / 255 + 0.05 * (pictures - shown)
    return torch.log(error.square().mean((1, 2, 3)) + _FLOOR).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=420)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    codec, reader = load_codec(), load_reader()
    model = QwenImageTransformer2DModel(**architecture.TRANSFORMER)
    exported = {name: weight.bfloat16().float() for name, weight in load_refined().items()}
    model.load_state_dict(exported)
    torch.manual_seed(0)
    adapters = adapt(model)
    run = Run("lightning", model, steps=arguments.steps, rate=arguments.rate, average=0.99)
    trainer = Trainer(codec, TextBank(reader, PictureSource(seed=9)), refining=True, pictures=True)
    for step in run:
        if step == run.first:
            trainer.fill(step + 30_000)
        torch.manual_seed(step)
        # So few weights need few pictures; encoding them would cost as much as the step.
        pairs, texts = trainer.batch(step + 30_000, arguments.batch, fresh=False)
        run.learn(way_loss(model, codec, pairs, texts, step))
        if run.due:
            with run.averaged():
                four = measure(model, codec, reader, 128, 3)
                two = measure(model, codec, reader, 128, 3, TWO_STEPS)
            run.note(four=_mean(four), two=_mean(two))
    with run.averaged():
        save_file(layout(adapters), TARGET)
    TARGET.chmod(0o644)
    print(f"{TARGET.stat().st_size / 1e6:7.2f} MB  {TARGET}")


def _mean(figures: dict[str, float]) -> float:
    return sum(figures.values()) / len(figures)


if __name__ == "__main__":
    main()
