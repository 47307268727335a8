"""Draws a photograph and seven edits of it: ``python docs/strip.py [FILE]``; README's strip is made so.

By the product's own dialect, mux and model in this process, where the seven edits share their forwards.
"""

import asyncio
import base64
import io
import sys
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script's own folder is on the path, the repository is not

from api.flat import FlatDialect  # noqa: E402 - after the path
from api.intake import ImageIntake, IntakeOptions  # noqa: E402
from batching.mux import BatchMux, BatchPolicy  # noqa: E402
from core.service import port  # noqa: E402
from pipelines.manager import ModelManager  # noqa: E402
from pipelines.options import Lightning, ModelOptions  # noqa: E402
from pipelines.registry import catalog  # noqa: E402

PROMPTS = (
    "black and white please",
    "turn this into a pencil sketch",
    "make it look like night",
    "invert the colours",
    "flip it left to right",
    "add a red border",
    "make it sepia",
)
SIDE, LINE = 192, 22


def square() -> Image.Image:
    """The middle of the photograph: the pocket checkpoint was trained on squares."""
    with Image.open(ROOT / "assets" / "chelsea.jpg") as picture:
        left = (picture.width - picture.height) // 2
        return picture.convert("RGB").crop((left, 0, left + picture.height, picture.height))


async def edits(mux: BatchMux, dialect: FlatDialect, photograph: Image.Image) -> list[Image.Image]:
    """One picture for each of ``PROMPTS``. Raises ``ServingError``."""
    file = io.BytesIO()
    photograph.save(file, "PNG")
    sent = base64.b64encode(file.getvalue()).decode()

    async def one(number: int, prompt: str) -> Image.Image:
        wishes = {"prompt": prompt, "image_base64": sent, "seed": 42}
        job = await dialect.parse(wishes, id=f"edit-{number}")
        answer = await dialect.render_output(job, await port(mux.submit)(job.request))
        return Image.open(io.BytesIO(base64.b64decode(answer["image"])))

    return await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(PROMPTS)))


def main(target: Path) -> None:
    rows = catalog("pocket-edit", lightning={"enabled": True})
    models = ModelManager(rows, ModelOptions(lightning=Lightning(enabled=True)))
    photograph = square()
    with (
        BatchMux(models.acquire, BatchPolicy(max_batch_size=len(PROMPTS))) as mux,
        ImageIntake(IntakeOptions()) as intake,
    ):
        pictures = asyncio.run(edits(mux, FlatDialect(catalog=rows, intake=intake), photograph))
    strip = Image.new("RGB", (4 * SIDE, 2 * (SIDE + LINE)), "white")
    pen = ImageDraw.Draw(strip)
    named = zip(("the photograph", *PROMPTS), (photograph, *pictures), strict=True)
    for at, (name, picture) in enumerate(named):
        left, top = at % 4 * SIDE, at // 4 * (SIDE + LINE)
        strip.paste(picture.resize((SIDE - 4, SIDE - 4)), (left + 2, top + LINE))
        pen.text((left + 6, top + 6), name, fill="black")
    target.parent.mkdir(parents=True, exist_ok=True)
    strip.save(target, optimize=True)
    print(f"a photograph and {len(pictures)} edits of it: {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "img" / "pocket-edits.png")
