"""Stage 2: teaches the small Qwen2.5-VL to tell the edits apart, whatever the wording.

The words of the answer's first tokens must carry which edit is wanted and how strongly: a head, thrown away
afterwards, reads it from them. The vision tower stays as drawn; pictures in the text are real ones, so that
the answer learns not to depend on them.
"""

import argparse
import random

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from pipelines.pocket import architecture
from pipelines.pocket.builder import text_encoder_config
from pipelines.pocket.drawing import redraw
from pipelines.pocket.vocabulary import build_tokenizer
from pipelines.qwen_loading import PictureTextProcessor
from pipelines.qwen_text import NUMBERED_PICTURES, Ask, PromptEncoder
from training.operations import OPERATIONS
from training.pictures import PictureSource
from training.run import Run
from training.wording import BLEND, HELD_OUT, STRENGTHS, Wish, has_strength, say

CLASSES = (*OPERATIONS, BLEND)
_TAIL = 5  # tokens after the prompt: they have read all of it
_SIDES = ((56, 56), (56, 56), (56, 56), (84, 56), (56, 84))


class TextReader(torch.nn.Module):
    """The text encoder, as the worker runs it, with a head that is dropped after training."""

    def __init__(self) -> None:
        super().__init__()
        tokenizer = build_tokenizer()
        self.encoder = Qwen2_5_VLForConditionalGeneration(text_encoder_config(tokenizer))
        redraw(self.encoder.model.visual, torch.float32)
        self.encoder.model.visual.requires_grad_(False)
        self.edit = torch.nn.Linear(architecture.TEXT["hidden_size"], len(CLASSES))
        self.strength = torch.nn.Linear(architecture.TEXT["hidden_size"], len(STRENGTHS))
        pictures = Qwen2VLImageProcessorPil(**architecture.IMAGE_PROCESSOR)
        processor = PictureTextProcessor(image_processor=pictures, tokenizer=tokenizer)
        self.prompts = PromptEncoder(self.encoder, processor, NUMBERED_PICTURES, torch.device("cpu"))

    def read(self, wishes: list[Wish], pictures: list[Image.Image]) -> list[Tensor]:
        """Embeddings [length, width] of each wish beside pictures[i]; of a blend beside two."""
        count = len(pictures)
        asks = [
            Ask(wish.text, (i, (i + 1) % count) if wish.operation == BLEND else (i,), "prompt")
            for i, wish in enumerate(wishes)
        ]
        return self.prompts.encode(asks, dict(enumerate(pictures)))

    def forward(self, wishes: list[Wish], pictures: list[Image.Image]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [n, tail, classes] of the edit, of its strength, and the tails."""
        tails = torch.stack([row[-_TAIL:] for row in self.read(wishes, pictures)])
        return self.edit(tails), self.strength(tails), tails


def draw_wish(draw: random.Random) -> Wish:
    """Each edit as often as another; unknown text three times as often."""
    operation = draw.choice((*CLASSES, "unchanged", "unchanged"))
    strength = draw.choice((0.5, 1.0, 1.0, 1.5)) if has_strength(operation) else 1.0
    return say(operation, strength, draw)


def thumbnails(source: PictureSource, step: int, draw: random.Random, count: int) -> list[Image.Image]:
    """Pictures as small as the text encoder is shown them."""
    shown = []
    for crop in (source.photos(step, count, 64) * 255).byte():
        picture = Image.fromarray(crop.permute(1, 2, 0).numpy())
        shown.append(picture.resize(draw.choice(_SIDES)))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = TextReader()
    run = Run("text", model, steps=arguments.steps, rate=arguments.rate)
    source = PictureSource(seed=3)
    for step in run:
        draw = random.Random(step)
        wishes = [draw_wish(draw) for _ in range(arguments.batch)]
        run.learn(_loss(model, wishes, thumbnails(source, step, draw, len(wishes))))
        if run.due:
            with torch.no_grad(), run.averaged():
                right, wrong = _measure(model, source)
            run.note(held_out=right, wrong=wrong)


def _loss(model: TextReader, wishes: list[Wish], pictures: list[Image.Image]) -> Tensor:
    edit, strength, tails = model(wishes, pictures)
    noise = 0.1 * tails.detach().std() * torch.randn_like(tails)
    edit = edit + F.linear(noise, model.edit.weight)
    classes = torch.tensor([CLASSES.index(wish.operation) for wish in wishes])
    levels = torch.tensor([list(STRENGTHS.values()).index(wish.strength) for wish in wishes])
    return F.cross_entropy(
        edit.flatten(0, 1), classes.repeat_interleave(_TAIL), label_smoothing=0.05
    ) + F.cross_entropy(strength.flatten(0, 1), levels.repeat_interleave(_TAIL))


def _measure(model: TextReader, source: PictureSource) -> tuple[float, list[str]]:
    wishes = [Wish(text, name) for name, texts in HELD_OUT.items() for text in texts]
    pictures = thumbnails(source, 0, random.Random(0), len(wishes))
    edit, _, _ = model(wishes, pictures)
    guesses = edit[:, -1].argmax(-1).tolist()
    wrong = [
        f"{wish.text}: {CLASSES[guess]}"
        for wish, guess in zip(wishes, guesses, strict=True)
        if CLASSES[guess] != wish.operation
    ]
    return 1 - len(wrong) / len(wishes), wrong


if __name__ == "__main__":
    main()
