"""Makes README's strip of edits: the photograph through ``python handler.py --test_input``, once a prompt."""

import base64
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
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


def square(folder: Path) -> Path:
    """The middle of the photograph: the pocket checkpoint was trained on squares."""
    path = folder / "square.png"
    with Image.open(ROOT / "assets" / "chelsea.jpg") as picture:
        left = (picture.width - picture.height) // 2
        picture.crop((left, 0, left + picture.height, picture.height)).save(path)
    return path


def edit(prompt: str, folder: Path) -> Path:
    """The picture that the product makes of the photograph. Raises ``CalledProcessError``."""
    photograph = base64.b64encode(square(folder).read_bytes()).decode()
    wishes = {"prompt": prompt, "image_base64": photograph, "seed": 42}
    job = folder / "job.json"
    job.write_text(json.dumps({"input": wishes}))
    given = ["env", "DEFAULT_MODEL=pocket-edit", f"OUTPUT_DIR={folder}"]
    command = [*given, sys.executable, "handler.py", "--test_input", str(job)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)  # noqa: S603 - our own program
    return folder / "after.png"


def main() -> None:
    strip = Image.new("RGB", (4 * SIDE, 2 * (SIDE + LINE)), "white")
    pen = ImageDraw.Draw(strip)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for at, prompt in enumerate(("the photograph", *PROMPTS)):
            path = square(folder) if at == 0 else edit(prompt, folder)
            left, top = at % 4 * SIDE, at // 4 * (SIDE + LINE)
            with Image.open(path) as picture:
                strip.paste(picture.convert("RGB").resize((SIDE - 4, SIDE - 4)), (left + 2, top + LINE))
            pen.text((left + 6, top + 6), prompt, fill="black")
    strip.save(ROOT / "docs" / "img" / "pocket-edits.png", optimize=True)


if __name__ == "__main__":
    main()
