"""``--test_input``: one job on this machine; the pictures that go in and the one that comes out are saved."""

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

from api.intake import ImageIntake
from core.catalog import Catalog
from core.request import Image, InferenceRequest
from core.result import InferenceResult, OnProgress
from core.service import Submit

DEFAULT_INPUT = "test_input.json"
MASK = "mask.png"

# Nobody may take a built-in model for more than it is.
_TRAINED = {
    "builtin:pocket-edit": "knows a few edits of small square pictures, listed in "
    "pipelines/pocket/MODEL_CARD.md, and leaves the picture as it is for other text."
}
_UNTRAINED = "was never trained: what it paints shows that the whole path works, and nothing of the text."


class BadTestInput(Exception):
    """A sentence for the person who typed the command."""


def job_for(argument: str | None, folder: Path, *, needed: bool) -> dict[str, Any] | None:
    """What ``--test_input`` names; without it the default job where one is needed, else none.

    folder: where its pictures will go. Raises ``BadTestInput``, also when nothing can be put there.
    """
    if not (argument or needed):
        return None
    job = job_of(argument or DEFAULT_INPUT)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadTestInput(f"OUTPUT_DIR: {folder} cannot be written to ({error.strerror})") from None
    return job


def job_of(argument: str) -> dict[str, Any]:
    """The job of an existing file's content, or of inline JSON. Raises ``BadTestInput``."""
    text, where = argument, "--test_input"
    if not argument.lstrip().startswith("{"):
        path = Path(argument)
        if not path.is_file():
            raise BadTestInput(f"{argument}: no such file; give a JSON file or inline JSON to --test_input")
        try:
            text, where = path.read_text("utf-8"), argument
        except (OSError, UnicodeDecodeError):
            raise BadTestInput(f"{argument} cannot be read as text") from None
    try:
        job = json.loads(text)
    except ValueError as error:
        raise BadTestInput(f"{where} is not valid JSON: {error}") from None
    if not isinstance(job, dict) or not isinstance(job.get("input"), dict):
        raise BadTestInput(f'{where} must look like {{"input": {{"prompt": …, "image_base64": …}}}}')
    return job


class Recorder:
    """A ``submit`` that also saves what went in and what came out, as PNG; ``intake`` writes them."""

    def __init__(self, submit: Submit, intake: ImageIntake, catalog: Catalog, folder: Path) -> None:
        self._submit = submit
        self._intake = intake
        self._catalog = catalog
        self._folder = folder

    async def __call__(
        self, request: InferenceRequest, on_progress: OnProgress | None = None
    ) -> InferenceResult:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._clear()
        for number, image in enumerate(request.images):
            await self._save(_before(number), image)
        if request.mask is not None:
            await self._save(MASK, request.mask)
        result = await self._submit(request, on_progress)
        after = await self._intake.encode_result(request, result, "png")
        self._write("after.png", after, *request.size)
        print(
            f"{request.model}: {request.steps_run} steps in {result.inference_seconds:.2f} s, "
            f"seed {request.seed}"
        )
        source = self._catalog.get(request.model).source
        if source.startswith("builtin:"):
            print(f"{request.model} {_TRAINED.get(source, _UNTRAINED)}")
        return result

    def _clear(self) -> None:
        """What an earlier job left would pass for what went into this one."""
        (self._folder / MASK).unlink(missing_ok=True)
        for number in itertools.count():
            path = self._folder / _before(number)
            if not path.exists():
                return
            path.unlink()

    async def _save(self, name: str, image: Image) -> None:
        self._write(name, await self._intake.encode(image, "png", image.size), *image.size)

    def _write(self, name: str, file: bytes, width: int, height: int) -> None:
        path = self._folder / name
        path.write_bytes(file)
        print(f"{path.stem}: {path} ({width}x{height})")


def _before(number: int) -> str:
    return f"before-{number + 1}.png" if number else "before.png"


def printable(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer without the picture's text, for the SDK prints what a local job returns."""
    image = answer.get("image")
    if not isinstance(image, str):
        return answer
    return answer | {"image": f"({len(image)} characters of base64)"}
