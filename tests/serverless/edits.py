"""Jobs and answers of the flat dialect, for tests to write and read."""

import base64
import io
from typing import Any

from PIL import Image as Pillow

from api.flat import FlatDialect
from api.intake import ImageIntake
from tests.serverless.painting import CATALOG, colour


def photograph(width: int = 64, height: int = 48) -> str:
    out = io.BytesIO()
    Pillow.new("RGB", (width, height), (10, 120, 200)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def job(job_id: str, prompt: str = "paint", **wishes: object) -> dict[str, Any]:
    return {"id": job_id, "input": {"prompt": prompt, "image_base64": photograph(), **wishes}}


def picture(answer: dict[str, Any]) -> Pillow.Image:
    return Pillow.open(io.BytesIO(base64.b64decode(answer["image"], validate=True))).convert("RGB")


def is_own(job: dict[str, Any], answer: dict[str, Any]) -> bool:
    """Whether the answer shows what this job, and no other, asked for."""
    asked = job["input"]
    image = picture(answer)
    size = (asked.get("width", image.width), asked.get("height", image.height))
    expected = colour(asked["prompt"], answer["seed"], asked.get("num_inference_steps", 4))
    return image.size == size and image.getpixel((0, 0)) == expected and answer["prompt"] == asked["prompt"]


def dialect(intake: ImageIntake) -> FlatDialect:
    return FlatDialect(catalog=CATALOG, intake=intake)
