"""Draws what each pocket vision model finds in a photograph: ``python docs/vision.py [FILE]``.

README's picture is made so. None of the models was ever trained: it shows what the drawings look like, and
not what a model can do. By the product's own dialect, mux and models in this process.
"""

import asyncio
import base64
import io
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script's own folder is on the path, the repository is not

from api.dialect import ApiOptions, Arrival, Services  # noqa: E402 - after the path
from api.files import FileOptions, FileStore  # noqa: E402
from api.intake import ImageIntake, IntakeOptions  # noqa: E402
from api.vision_kinds import KINDS  # noqa: E402
from api.vision_service import VisionService  # noqa: E402
from batching.mux import BatchMux, BatchPolicy  # noqa: E402
from core.service import Health, port  # noqa: E402
from pipelines.manager import ModelManager  # noqa: E402
from pipelines.options import ModelOptions  # noqa: E402
from pipelines.registry import SPECS, catalog  # noqa: E402

# Thresholds at which these models, which know nothing, name a few things and not all.
WISHES: dict[str, dict[str, Any]] = {
    "sam3": {"prompts": ["a cup", "a spoon"], "threshold": 0.72},
    "grounding_dino": {"prompts": ["a cup", "a spoon"], "box_threshold": 0.33},
    "depth_anything": {},
    "dinov3": {},
}
GAP = 8


async def drawings(services: Services, sent: str) -> list[Image.Image]:
    """One picture for each kind. Raises ``ServingError``."""
    drawn: list[Image.Image] = []
    for name, wishes in WISHES.items():
        service = VisionService(services, KINDS[name])
        now = time.monotonic()
        arrival = Arrival(id=name, shown_id=name, path="", started=now, headers={}, query={"render": "1"})
        call = await service.parse({"images": [sent], **wishes}, arrival)
        answer = await service.render(call, [await services.submit(request) for request in call.requests])
        drawn.append(Image.open(io.BytesIO(answer.body)))
    return drawn


def main(target: Path) -> None:
    pockets = {spec.name for spec in SPECS if spec.vision is not None and spec.source.startswith("builtin:")}
    rows = catalog("pocket-sam3", allowed=frozenset(pockets))
    models = ModelManager(rows, ModelOptions(max_models=len(pockets)))
    with BatchMux(models.acquire, BatchPolicy()) as mux, ImageIntake(IntakeOptions()) as intake:
        services = Services(
            submit=port(mux.submit),
            catalog=rows,
            health=lambda: Health(state="ready", model=rows.default.name),
            options=ApiOptions(),
            intake=intake,
            admit=lambda: None,
            files=FileStore(FileOptions(folder=Path("out"))),
        )
        photograph = (ROOT / "assets" / "coffee.jpg").read_bytes()
        drawn = asyncio.run(drawings(services, base64.b64encode(photograph).decode()))
    side = drawn[0].width
    strip = Image.new("RGB", ((side + GAP) * len(drawn) - GAP, drawn[0].height), "white")
    for place, picture in enumerate(drawn):
        strip.paste(picture, (place * (side + GAP), 0))
    target.parent.mkdir(exist_ok=True)
    strip.save(target, optimize=True)
    print(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("out/vision.png"))
