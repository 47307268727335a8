"""Stage 3: trains the small ``QwenImageTransformer2DModel`` by flow matching on exact edits, in latents."""

import argparse
import random
from collections import defaultdict
from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from torch import Tensor

from pipelines.pocket import architecture
from training.latents import FIRST, REFINED, Grid, LatentCodec, PairRing, Pairs
from training.operations import OPERATIONS
from training.pictures import PictureSource, held_out
from training.run import FOLDER, Run, psnr
from training.still import StillAutoencoder
from training.text import TextReader, draw_wish, thumbnails
from training.wording import BLEND, HELD_OUT, Wish

_TEXTS = 3000
_LONGEST_TEXT = 34
LIGHTNING = (1.0, 0.9, 0.75, 0.5)  # sigmas of 4 steps under a shift of 3
_LARGE = 1 / 4  # pairs of 256x256 cost as much as four of 128x128
_LONG = ((14, 20), (6, 10), (20, 14), (10, 6))  # 3:2 and 2:3, as the pipeline rounds them
_AMPLITUDES = (1.0, 1.0, 0.5)  # of a positional head, on each axis' fastest frequencies


class TextBank:
    """Embeddings of many training texts, by what they ask for."""

    def __init__(self, reader: TextReader, source: PictureSource) -> None:
        draw = random.Random(5)
        self._rows: dict[tuple[str, float], list[Tensor]] = defaultdict(list)
        with torch.no_grad():
            for step in range(_TEXTS // 50):
                wishes = [draw_wish(draw) for _ in range(50)]
                rows = reader.read(wishes, thumbnails(source, step, draw, 50))
                for wish, row in zip(wishes, rows, strict=True):
                    if len(row) > _LONGEST_TEXT:  # would make a whole batch longer
                        continue
                    self._rows[wish.operation, wish.strength].append(row)

    def draw(self, asked: list[tuple[str, float]], draw: random.Random) -> tuple[Tensor, Tensor]:
        """Padded embeddings [n, longest, width] and which places are real."""
        return pad([draw.choice(self._rows[wish]) for wish in asked])


def pad(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return padded, torch.arange(padded.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]


def velocity(
    model: Any,
    noisy: Tensor,
    time: Tensor,
    references: tuple[Tensor, ...],
    texts: tuple[Tensor, Tensor],
    grid: Grid,
) -> Tensor:
    """One forward, as the pipeline does it. noisy, references: [n, rows * columns, 64], all of one grid."""
    shapes = [(1, *grid)] * (1 + len(references))
    moved: Tensor = model(
        hidden_states=torch.cat([noisy, *references], 1),
        timestep=time,
        encoder_hidden_states=texts[0],
        encoder_hidden_states_mask=texts[1],
        img_shapes=[shapes] * len(noisy),
        return_dict=False,
    )[0]
    return moved[:, : noisy.shape[1]]


def sample(
    model: Any,
    references: tuple[Tensor, ...],
    texts: tuple[Tensor, Tensor],
    sigmas: tuple[float, ...],
    seed: int,
    grid: Grid,
) -> Tensor:
    """Packed latents of the edited pictures, by Euler steps from noise of ``seed``."""
    latents = torch.randn(references[0].shape, generator=torch.Generator().manual_seed(seed))
    for start, end in zip(sigmas, (*sigmas[1:], 0.0), strict=True):
        time = torch.full((len(latents),), start)
        latents = latents + (end - start) * velocity(model, latents, time, references, texts, grid)
    return latents


def start(model: Any) -> None:
    """Begin near what the task needs: noise passes through; some heads look at the reference's same place.

    Without it the first thousands of steps go into finding out where to look.
    """
    heads, width = model.config.num_attention_heads, model.config.attention_head_dim
    with torch.no_grad():
        torch.nn.init.orthogonal_(model.img_in.weight)
        model.img_in.bias.zero_()
        model.proj_out.weight.copy_(model.img_in.weight.T * (64 / (heads * width)) ** 0.5)
        model.proj_out.bias.zero_()
        model.norm_out.linear.weight.mul_(0.1)
        model.norm_out.linear.bias.zero_()
        for number, block in enumerate(model.transformer_blocks):
            for modulation in (block.img_mod[1], block.txt_mod[1]):
                modulation.weight.mul_(0.1)
                shifts = modulation.bias.zero_().view(6, -1)
                shifts[2] = shifts[5] = 1.0  # the gates
            for layer in (
                block.attn.to_out[0],
                block.attn.to_add_out,
                block.img_mlp.net[2],
                block.txt_mlp.net[2],
            ):
                layer.weight.mul_(0.5)
            for norm in (block.attn.norm_q, block.attn.norm_k):
                norm.weight.fill_(1.7)
            frames = ((1, 1, 2), (1, 1), (1,), ())[number] if number < 4 else ()
            for head, frame in enumerate(frames):
                _look_at(block.attn, head, frame, model.config)


def _look_at(attention: Any, head: int, frame: int, config: Any) -> None:
    """Make a head of image tokens look ``frame`` pictures on, at its own row and column."""
    query, key = [], []
    for axis, size in enumerate(config.axes_dims_rope):
        for i in range(size // 2):
            amplitude = _AMPLITUDES[i] if i < (1 if axis == 0 else len(_AMPLITUDES)) else 0.0
            turn = torch.tensor(-frame * 10000 ** (-2 * i / size) if axis == 0 else 0.0)
            query += [amplitude, 0.0]
            key += [amplitude * float(torch.cos(turn)), amplitude * float(torch.sin(turn))]
    rows = slice(head * config.attention_head_dim, (head + 1) * config.attention_head_dim)
    for layer, bias in ((attention.to_q, query), (attention.to_k, key)):
        layer.weight[rows] *= 0.1
        layer.bias[rows] = torch.tensor(bias)


class Trainer:
    """Rings of pairs at both sizes and for blends, filled a little at every step.

    refining: one turn in four is of a long canvas, and the hard edits are other ones.
    pictures: pairs come with the exact picture.
    """

    def __init__(
        self, codec: LatentCodec, texts: TextBank, *, refining: bool = False, pictures: bool = False
    ) -> None:
        source = PictureSource(seed=10 if refining else 6)
        self._texts = texts

        def ring(grid: Grid, capacity: int, *, blends: bool = False) -> PairRing:
            weights = REFINED if refining else FIRST
            return PairRing(
                codec,
                source,
                grid,
                blends=blends,
                capacity=capacity,
                weights=weights,
                pictures=pictures,
            )

        self._small = ring((8, 8), 8000)
        self._large = ring((16, 16), 2000)
        self._blends = ring((8, 8), 1000, blends=True)
        self._long = [ring(grid, 600) for grid in _LONG] if refining else []

    def fill(self, step: int) -> None:
        """What a fresh or resumed run starts with."""
        for i in range(40):
            self._small.refresh(1_000_000 + step * 100 + i, 4, 4)
        for i in range(6):
            self._large.refresh(1_500_000 + step * 100 + i, 3, 4)
            self._blends.refresh(2_000_000 + step * 100 + i, 6, 1)
            for number, ring in enumerate(self._long):
                ring.refresh(2_500_000 + number * 100_000 + step * 10 + i, 2, 4)

    def batch(self, step: int, size: int, *, fresh: bool = True) -> tuple[Pairs, tuple[Tensor, Tensor]]:
        """What step ``step`` learns: some pairs are fresh where asked for, most were met before."""
        draw = random.Random(step)
        ring, share = self._turn(step)
        if fresh:
            ring.refresh(step, 1, 2 if share == _LARGE else 4)
        pairs = ring.draw(max(1, round(size * share)), draw)
        return pairs, self._texts.draw(pairs.asked, draw)

    def _turn(self, step: int) -> tuple[PairRing, float]:
        """Which ring a step uses, and how many of its pairs cost as much as one small pair."""
        if step % 16 == 7:
            return self._blends, 2 / 3
        if self._long and step % 4 == 0:
            ring = self._long[step // 4 % len(self._long)]
            return ring, _LARGE if ring.grid[0] * ring.grid[1] > 128 else 1.0
        return (self._large, _LARGE) if step % 8 in (1, 3, 6) else (self._small, 1.0)


def flow_loss(model: Any, pairs: Pairs, texts: tuple[Tensor, Tensor], weight: Tensor) -> Tensor:
    """Velocity error, weighted by what shows in the picture.

    Times lean to the noisy end, where few-step schedules spend their steps.
    """
    uniform = torch.rand(len(pairs.target))
    time = 3 * uniform / (1 + 2 * uniform)
    noise = torch.randn_like(pairs.target)
    at = time[:, None, None]
    noisy = (1 - at) * pairs.target + at * noise
    moved = velocity(model, noisy, time, pairs.references, texts, pairs.grid)
    error = ((moved - (noise - pairs.target)).square() * weight).mean((1, 2))
    return (error * (2 * time).clamp(max=1)).mean()


def load_codec() -> LatentCodec:
    autoencoder = StillAutoencoder(architecture.VAE)
    autoencoder.load_state_dict(Run.weights("autoencoder"))
    return LatentCodec.measured(autoencoder)


def load_refined() -> dict[str, Tensor]:
    """The transformer's weights, refined where that stage was run."""
    refined = (FOLDER / "refined" / "weights.pt").exists()
    return Run.weights("refined" if refined else "transformer")


def load_reader() -> TextReader:
    reader = TextReader()
    reader.load_state_dict(Run.weights("text"))
    return reader.eval().requires_grad_(False)


def measure(
    model: Any,
    codec: LatentCodec,
    reader: TextReader,
    side: int,
    count: int,
    sigmas: tuple[float, ...] = LIGHTNING,
) -> dict[str, float]:
    """PSNR of each edit on held-out pictures under a held-out wording."""
    pictures = held_out(side)[:count]
    references, grid = codec.encode(pictures), (side // 16, side // 16)
    shown = thumbnails(PictureSource(seed=7), 0, random.Random(0), count)
    figures = {}
    with torch.no_grad():
        for name, texts in HELD_OUT.items():
            if name == BLEND:
                continue
            rows = reader.read([Wish(texts[i % len(texts)], name) for i in range(count)], shown)
            latents = sample(model, (references,), pad(rows), sigmas, 0, grid)
            edited = codec.decode(latents, grid).clamp(0, 1)
            exact = OPERATIONS[name](pictures, 1.0)
            each = [psnr(a, b) for a, b in zip(edited, exact, strict=True)]
            figures[name] = sum(each) / len(each)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, help="2400, or 1600 to refine")
    parser.add_argument("--rate", type=float, help="3e-3, or 1.5e-3 to refine")
    parser.add_argument("--batch", type=int, default=24, help="pairs of 128x128 a step, or as many tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--refine", action="store_true", help="go on from what stage 3 or a restore left")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    codec, reader = load_codec(), load_reader()
    torch.manual_seed(0)
    model = QwenImageTransformer2DModel(**architecture.TRANSFORMER)
    if arguments.refine:
        model.load_state_dict(Run.weights("transformer"))
    else:
        start(model)
    blocks = [p for p in model.transformer_blocks.parameters() if p.ndim == 2]
    matrices = [p for p in blocks if p.shape[0] != 6 * p.shape[1]]  # not the modulations
    name, steps, rate = ("refined", 1600, 1.5e-3) if arguments.refine else ("transformer", 2400, 3e-3)
    run = Run(name, model, steps=arguments.steps or steps, rate=arguments.rate or rate, matrices=matrices)
    bank = TextBank(reader, PictureSource(seed=5))
    trainer = Trainer(codec, bank, refining=arguments.refine)
    for step in run:
        if step == run.first:
            trainer.fill(step)
        torch.manual_seed(step)
        run.learn(flow_loss(model, *trainer.batch(step, arguments.batch), codec.weight))
        if run.due:
            with run.averaged():
                figures = measure(model, codec, reader, 128, 3)
            edits = {name: value for name, value in figures.items() if name != "unchanged"}
            run.note(mean=sum(edits.values()) / len(edits), **{k: round(v, 1) for k, v in figures.items()})


if __name__ == "__main__":
    main()
