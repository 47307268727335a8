"""Measures the pocket checkpoint through the worker's own pipeline: tables, a contact sheet, and its bars.

Held-out photographs and held-out wordings only. PSNR in dB against the exact operation, over values 0 ... 1.
Exits 1 when a bar is missed, and names it.
"""

import argparse
import random
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from training.bars import Bar, drops, edit_bars, lightning_bars, report
from training.editor import Editor
from training.operations import OPERATIONS, blend
from training.pictures import held_out
from training.run import psnr
from training.sheet import Sheet
from training.wording import BLEND, HELD_OUT, say

# What a mean is taken over, one colour for all borders; the first table shows the others too.
GOAL = (
    "black and white", "sketch", "warmer", "invert", "flip", "red border", "blur", "brighter", "darker",
    "contrast", "pixelate", "sepia", "night",
)  # fmt: skip
_TURNS = 2  # edits of each photograph, under different wordings
_OTHER_SIZES = ((128, 128), (320, 224), (224, 320))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sheet", type=Path, default=Path("out/pocket-eval.png"))
    parser.add_argument("--quick", action="store_true", help="the first table alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    editor, photos, sheet = Editor(), held_out(256), Sheet()
    bars = edits(editor, photos, sheet)
    arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet.image().save(arguments.sheet, quality=80)
    print(f"contact sheet (edit over exact operation): {arguments.sheet}")
    if not arguments.quick:
        strengths(editor, photos)
        other_sizes()
        bars += lightning(editor, photos[::2])
    return report(bars)


def edits(editor: Editor, photos: Tensor, sheet: Sheet) -> list[Bar]:
    """The first table: every edit at 256x256 in the row's own 4 steps."""
    rebuilt = editor.rebuild(photos)
    autoencoder = each_psnr(rebuilt, photos)
    print(f"autoencoder at 256x256: {mean(autoencoder):.2f} dB, worst {min(autoencoder):.2f}")
    print(
        f"4 steps, {len(photos)} held-out photographs x {_TURNS} of 4 held-out wordings, without the LoRA\n"
        f"{'edit':16} {'edit':>6} {'worst':>6} {'input':>6} {'gain':>6} {'limit':>6}"
    )
    sheet.add("photograph", photos)
    sheet.add("autoencoder", rebuilt)
    means, gains = {}, {}
    for name in _progress((*OPERATIONS, BLEND), "edits"):
        exact = exactly(name, photos)
        turns = [perform(editor, name, photos, turn=turn) for turn in range(_TURNS)]
        each = [value for edited in turns for value in each_psnr(edited, exact)]
        unedited = mean(min(value, 99.0) for value in each_psnr(photos, exact))
        limit = mean(each_psnr(editor.rebuild(exact), exact))
        means[name], gains[name] = mean(each), mean(each) - unedited
        tqdm.write(
            f"{name:16} {means[name]:6.2f} {min(each):6.2f} {unedited:6.2f} {gains[name]:+6.2f} {limit:6.2f}",
            file=sys.stdout,
        )
        sheet.add(f"{name}: {', '.join(wordings(name))}", turns[0])
        sheet.add(f"{name}, exact", exact)
    del gains["unchanged"]
    goal = [means[name] for name in GOAL]
    print(f"mean of the {len(goal)} edits asked for: {mean(goal):.2f} dB, least {min(goal):.2f}")
    return edit_bars(autoencoder=mean(autoencoder), mean=mean(goal), means=means, gains=gains)


def strengths(editor: Editor, photos: Tensor) -> None:
    """Training texts here: how strongly is a word of the grammar, not of a wording."""
    for name in ("blur", "brighter", "darker", "contrast", "warmer", "cooler"):
        line = []
        for strength in (0.5, 1.5):
            draw = random.Random(0)
            prompts = [say(name, strength, draw).text for _ in photos]
            edited = editor.edit(prompts, [(photo,) for photo in photos])
            own, plain = (OPERATIONS[name](photos, s) for s in (strength, 1.0))
            line.append(f"x{strength} {psnr(edited, own):.2f} (if x1.0 were meant {psnr(edited, plain):.2f})")
        print(f"strength of {name:10} {'   '.join(line)}")


def other_sizes() -> None:
    for width, height in _OTHER_SIZES:
        editor, photos = Editor((width, height)), held_out(height, width)
        means = {}
        for name in _progress(GOAL, f"{width}x{height}"):
            means[name] = mean(each_psnr(perform(editor, name, photos), exactly(name, photos)))
        least = min(means, key=lambda name: means[name])
        print(
            f"{width}x{height}: mean {mean(means.values()):.2f} dB, least {means[least]:.2f} ({least}); "
            f"flip {means['flip']:.2f}, red border {means['red border']:.2f}"
        )


def lightning(plain: Editor, photos: Tensor) -> list[Bar]:
    """The edits asked for under one wording, with the LoRA and without it, in the steps that matter."""
    fused, shifted = Editor(lightning=True), Editor(lightning=True, lora=False)
    columns = {
        "20": (plain, 20), "4": (plain, 4), "4 alone": (shifted, 4), "4 LoRA": (fused, 4),
        "2": (plain, 2), "2 alone": (shifted, 2), "2 LoRA": (fused, 2),
    }  # fmt: skip
    print(
        f"steps, {len(photos)} photographs, one wording; alone: the schedule of few steps without the LoRA\n"
        f"{'':16}{''.join(f'{column:>8}' for column in columns)}"
    )
    means: dict[str, list[float]] = {column: [] for column in columns}
    for name in _progress(GOAL, "LoRA"):
        exact = exactly(name, photos)
        for column, (editor, steps) in columns.items():
            edited = perform(editor, name, photos, steps=steps)
            means[column].append(mean(each_psnr(edited, exact)))
        tqdm.write(f"{name:16}" + "".join(f"{means[c][-1]:8.2f}" for c in columns), file=sys.stdout)
    figures = {column: mean(values) for column, values in means.items()}
    print(f"{'mean':16}" + "".join(f"{value:8.2f}" for value in figures.values()))
    if not drops(figures):
        print("4 steps without the LoRA lose nothing that it could repair, so it must gain at 2")
    return lightning_bars(figures)


def perform(editor: Editor, name: str, photos: Tensor, *, steps: int = 4, turn: int = 0) -> Tensor:
    """The edit ``name`` of each photograph; another turn gives each one another wording."""
    texts = wordings(name)
    prompts = [texts[(i + turn) % len(texts)] for i in range(len(photos))]
    others = photos.roll(1, 0)
    inputs = [(a, b) if name == BLEND else (a,) for a, b in zip(photos, others, strict=True)]
    return editor.edit(prompts, inputs, steps)


def exactly(name: str, photos: Tensor) -> Tensor:
    return blend(photos, photos.roll(1, 0)) if name == BLEND else OPERATIONS[name](photos, 1.0)


def wordings(name: str) -> list[str]:
    """Held-out ones; borders of other colours are asked for as red ones are."""
    return HELD_OUT.get(name) or [text.replace("red", name.split()[0]) for text in HELD_OUT["red border"]]


def each_psnr(edited: Tensor, exact: Tensor) -> list[float]:
    return [psnr(a, b) for a, b in zip(edited, exact, strict=True)]


def mean(values: Iterable[float]) -> float:
    each = list(values)
    return sum(each) / len(each)


def _progress(names: Iterable[str], title: str) -> Iterable[str]:
    bar: Iterable[str] = tqdm(list(names), desc=title, leave=False, mininterval=1)
    return bar


if __name__ == "__main__":
    sys.exit(main())
