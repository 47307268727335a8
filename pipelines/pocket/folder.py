"""Where a built-in checkpoint is written: whole or not at all, and once for each recipe."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"  # trained by ``training/``; see the model card beside them


def content_version() -> str:
    """Names what a build gives: the recipe is this package's own source and weights."""
    recipe = hashlib.sha256()
    for file in sorted([*Path(__file__).parent.glob("*.py"), *WEIGHTS.iterdir()]):
        recipe.update(file.read_bytes())
    return recipe.hexdigest()[:12]


def write_once(parent: Path, name: str, write: Callable[[Path], None]) -> Path:
    """The folder of checkpoint ``name`` under ``parent``, made now unless this recipe was built there before.

    Raises ``OSError`` when ``parent`` cannot be written to.
    """
    folder = parent / f"{name}-{content_version()}"
    if folder.is_dir():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
    try:
        write(unfinished)
        for path in unfinished.rglob("*"):  # save_pretrained leaves some files readable to their owner alone
            path.chmod(0o755 if path.is_dir() else 0o644)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was first; its bytes are the same
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder
