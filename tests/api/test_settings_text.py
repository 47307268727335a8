"""What a PNG says of how it was made, read back by Pillow; nothing of an input's own metadata survives."""

import base64
import io
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import requests
from PIL import Image as Pillow
from PIL.ExifTags import GPS, IFD, Base
from PIL.PngImagePlugin import PngImageFile, PngInfo

from api.images import IMAGE_FORMATS, encode
from api.intake import ImageIntake, IntakeOptions
from api.settings_text import infotext
from core.request import Image, InferenceRequest, Task
from core.result import InferenceResult
from tests.api.serving import ARTIST, CATALOG, Served, png, serving, text

RESULT = InferenceResult(
    id="job",
    output=Image(pixels=bytes(96 * 64 * 3), width=96, height=64),
    model="artist",
    seed=11,
    steps=4,
)


def request_for(**fields: Any) -> InferenceRequest:
    asked: dict[str, Any] = {
        "id": "job",
        "task": Task.GENERATE,
        "prompt": "a lighthouse",
        "steps": 4,
        "cfg": 2.5,
        "seed": 11,
    }
    return CATALOG.get("artist").request(**asked | {"width": 96, "height": 64} | fields)


LINE = "Steps: 4, Sampler: Euler, CFG scale: 2.5, Seed: 11, Size: 96x64, Model: artist"
PICTURE = Image(pixels=bytes(96 * 64 * 3), width=96, height=64)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, f"a lighthouse\n{LINE}"),
        ({"negative_prompt": "fog, rain"}, f"a lighthouse\nNegative prompt: fog, rain\n{LINE}"),
        ({"negative_prompt": ""}, f"a lighthouse\n{LINE}"),
        ({"prompt": "two\nlines"}, f"two\nlines\n{LINE}"),
        (
            {"task": Task.EDIT, "images": (PICTURE,), "strength": 0.75},
            f"a lighthouse\n{LINE}, Denoising strength: 0.75",
        ),
        (
            {"adapters": (("comic", 0.5), ("pencil", 1.0))},
            f'a lighthouse\n{LINE}, Lora: "comic: 0.5, pencil: 1"',
        ),
    ],
    ids=["plain", "negative", "blank negative", "lines", "strength", "loras"],
)
def test_the_text_is_as_the_web_ui_writes_it(fields: dict[str, Any], expected: str) -> None:
    """Letter for letter: galleries and front ends parse it."""
    assert infotext(request_for(**fields), RESULT) == expected


def test_the_web_uis_own_parser_reads_it() -> None:
    """Its expression for the last line, from ``modules/infotext_utils.py``."""
    parameter = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
    asked = request_for(adapters=(("comic", 0.5), ("pencil", 1.0)))
    found = dict(parameter.findall(infotext(asked, RESULT).split("\n")[-1]))
    assert found == {
        "Steps": "4",
        "Sampler": "Euler",
        "CFG scale": "2.5",
        "Seed": "11",
        "Size": "96x64",
        "Model": "artist",
        "Lora": '"comic: 0.5, pencil: 1"',
    }


@pytest.mark.parametrize(
    ("value", "kind"),
    [("plain", b"tEXt"), ("gr\u00fcn\nund rot", b"tEXt"), ("\u9727 and \U0001f30a", b"iTXt"), ("", b"tEXt")],
    ids=["ascii", "latin-1", "others", "empty"],
)
def test_text_of_any_alphabet_comes_back(value: str, kind: bytes) -> None:
    """PNG's older text is Latin-1 alone; the picture beside it stays as it is."""
    file = encode(PICTURE, "png", (96, 64), {"parameters": value, "other": "x"})
    with Pillow.open(io.BytesIO(file)) as picture:
        assert isinstance(picture, PngImageFile)
        picture.load()
        assert picture.text == {"parameters": value, "other": "x"}
        assert picture.tobytes() == PICTURE.pixels
    assert kind in file
    at = file.index(kind + b"parameters")
    size = int.from_bytes(file[at - 4 : at], "big")
    assert int.from_bytes(file[at + 4 + size : at + 8 + size], "big") == zlib.crc32(file[at : at + 4 + size])


def test_a_zero_byte_does_not_end_the_text_early() -> None:
    """JSON can carry one into a prompt; in a PNG it would separate keyword and value."""
    file = encode(PICTURE, "png", (96, 64), {"parameters": "a\0b"})
    with Pillow.open(io.BytesIO(file)) as picture:
        assert picture.info["parameters"] == "ab"


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
@pytest.mark.parametrize("wanted", [True, False])
def test_only_pngs_tell_and_only_where_it_is_wanted(image_format: Any, wanted: bool) -> None:
    """A prompt can be private, so PNG_METADATA=0 must leave no trace of it."""
    with ImageIntake(IntakeOptions(codec_threads=1, png_metadata=wanted)) as intake:
        file = intake.file(request_for(), RESULT, image_format)
    assert (b"lighthouse" in file) == (wanted and image_format == "png")


def from_generate(served: Served) -> bytes:
    answer = served.client.request("POST", "/generate", b'{"prompt": "a lighthouse"}')
    return base64.b64decode(answer.json()["image_base64"].partition(",")[2])


def from_edit(served: Served) -> bytes:
    parts = {"image": ("a.png", png(), "image/png")}
    url = f"http://127.0.0.1:{served.client.port}/edit"
    return requests.post(url, files=parts, data={"prompt": "a lighthouse"}, timeout=20).content


@pytest.mark.parametrize("answered", [from_generate, from_edit])
@pytest.mark.parametrize("wanted", [True, False])
def test_the_older_contracts_tell_too(answered: Callable[[Served], bytes], wanted: bool) -> None:
    """Which address a picture came from is nothing that its reader knows."""
    with serving(images=IntakeOptions(png_metadata=wanted)) as running:
        file = answered(running)
    with Pillow.open(io.BytesIO(file)) as picture:
        assert picture.info.get("parameters", "").startswith("a lighthouse\nSteps: ") is wanted
        assert bool(picture.info) is wanted


SECRETS = (b"Jane Doe", b"beach of 1999", b"GPSLatitude", b"Exif", b"eXIf", b"iCCP", b"Canon")


def tagged(kind: str) -> bytes:
    """A file with a camera, a place, a comment and a colour profile in it."""
    exif = Pillow.Exif()
    exif[Base.Make], exif[Base.Artist] = "Canon", "Jane Doe"
    exif.get_ifd(IFD.GPSInfo)[GPS.GPSLatitude] = (48.0, 8.0, 0.0)
    words = PngInfo()
    words.add_text("Author", "Jane Doe")
    words.add_itxt("Comment", "beach of 1999")
    extra: dict[str, Any] = {"pnginfo": words} if kind == "PNG" else {"comment": b"beach of 1999"}
    out = io.BytesIO()
    Pillow.new("RGB", (96, 64), (9, 9, 9)).save(out, kind, exif=exif, icc_profile=b"Jane Doe" * 20, **extra)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_nothing_of_an_inputs_metadata_survives(kind: str, image_format: str, served: Served) -> None:
    """Who sends a photograph does not want its place in the answer."""
    source = tagged(kind)
    assert any(secret in source for secret in SECRETS)
    wishes = {"prompt": "p", "image_base64": text(source), "output_format": image_format, "seed": 1}
    file = base64.b64decode(served.client.run(wishes).json()["image"])
    for secret in SECRETS:
        assert secret not in file
    with Pillow.open(io.BytesIO(file)) as picture:
        picture.load()
        assert not dict(picture.getexif())
        assert set(picture.info) <= {"parameters", "jfif", "jfif_version", "jfif_unit", "jfif_density"} | {
            *("loop", "background", "timestamp", "duration"),
        }


@pytest.mark.parametrize("wanted", [True, False])
def test_the_flat_dialects_pngs_tell(wanted: bool) -> None:
    """The oldest dialect answers PNGs too."""
    with serving(images=IntakeOptions(codec_threads=1, png_metadata=wanted)) as served:
        answer = served.client.run({"prompt": "a lighthouse", "model": "artist", "seed": 3, "width": 96})
    told = answer.picture().info.get("parameters", "")
    assert ("a lighthouse" in told and "Seed: 3" in told) is wanted


def test_the_size_told_is_the_one_asked_for() -> None:
    """Not the canvas, which is rounded up."""
    asked = replace(request_for(width=100, height=70), seed=1)
    assert asked.canvas != asked.size
    assert "Size: 100x70" in infotext(asked, RESULT)
    assert ARTIST.multiple == 16
