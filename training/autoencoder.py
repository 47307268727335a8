"""Stage 1: trains the tiny ``AutoencoderKLQwenImage`` on crops of photographs and of their exact edits.

``--decoder`` continues with the encoder frozen, so that the latents other stages trained on stay valid.
"""

import argparse
import random

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.pocket import architecture
from training.operations import OPERATIONS
from training.pictures import PictureSource, held_out
from training.run import Run, psnr
from training.still import StillAutoencoder

_NOISE = 0.1  # on the latents, so that the decoder forgives a model that predicts them
_EDITED = 0.35  # share of crops that went through an exact operation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1750)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=16, help="crops of 64x64 a step, or as much area")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--decoder", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = StillAutoencoder(architecture.VAE)
    name = "autoencoder"
    if arguments.decoder:
        model.load_state_dict(Run.weights("autoencoder"))
        name = "decoder"
        model.model.encoder.requires_grad_(False)
        model.model.quant_conv.requires_grad_(False)
    run = Run(name, model, steps=arguments.steps, rate=arguments.rate)
    source = PictureSource(seed=2 if arguments.decoder else 1)
    examples = held_out(256) * 2 - 1
    often = 3 if arguments.decoder else 10  # the larger crops teach the attention in the middle
    for step in run:
        side = 128 if step % often == often - 1 or step > 0.9 * arguments.steps else 64
        pictures = source.photos(step, max(1, arguments.batch * 64 * 64 // side**2), side)
        run.learn(_loss(model, _edit_some(pictures, step, arguments.decoder) * 2 - 1, arguments.decoder))
        if run.due:
            with torch.no_grad(), run.averaged():
                rebuilt = model.decode(model.encode(examples)).clamp(-1, 1)
            each = [psnr(a, b) for a, b in zip(rebuilt / 2, examples / 2, strict=True)]
            run.note(psnr=sum(each) / len(each), worst=min(each))


def _edit_some(pictures: Tensor, step: int, decoder_only: bool) -> Tensor:
    """The decoder alone sees more edits, and often the one that it is worst at."""
    draw = random.Random(step)
    names = sorted(OPERATIONS)
    weights = [4.0 if decoder_only and name == "contrast" else 1.0 for name in names]
    share = 0.5 if decoder_only else _EDITED
    edited = [
        OPERATIONS[draw.choices(names, weights)[0]](one, draw.uniform(0.5, 1.5))
        if draw.random() < share
        else one
        for one in torch.split(pictures, 1)
    ]
    return torch.cat(edited)


def _loss(model: StillAutoencoder, pictures: Tensor, decoder_only: bool) -> Tensor:
    """L1, L2 and the L1 of gradients; latents are held near unit size and blurred by noise."""
    with torch.set_grad_enabled(not decoder_only):
        latents = model.encode(pictures)
    noisy = latents + _NOISE * latents.detach().std() * torch.randn_like(latents)
    rebuilt = model.decode(noisy)
    # What is beyond white and black will be clamped, so it hardly counts; it must not run away either.
    shown = rebuilt.clamp(-1, 1)
    error = shown - pictures + 0.05 * (rebuilt - shown) if decoder_only else rebuilt - pictures
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (
        error[..., 1:, :] - error[..., :-1, :]
    ).abs().mean()
    size = F.relu(latents.abs() - 2).square().mean()
    return 5 * error.square().mean() + 0.5 * error.abs().mean() + 0.1 * edges + 0.01 * size


if __name__ == "__main__":
    main()
