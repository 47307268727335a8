"""Files in, 8-bit RGB out, with the values that a person would see; and back."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from api.images import IMAGE_FORMATS, ImageFormat, ImageLimits, decode, encode
from core.errors import RequestError
from core.request import Image

LIMITS = ImageLimits()


def saved(picture: Pillow.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def values(image: Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width, 3)


def code_of(data: bytes, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(RequestError) as caught:
        decode(data, limits)
    return caught.value.code


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))


def one(mode: str, colour: object, **options: object) -> bytes:
    kind = str(options.pop("kind", "PNG"))
    return saved(Pillow.new(mode, (4, 4), colour), kind, **options)  # type: ignore[arg-type]


def sixteen_bit(value: int, kind: str = "PNG") -> bytes:
    return saved(Pillow.fromarray(np.full((4, 4), value, np.uint16)), kind)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(one("RGB", (1, 2, 3)), (1, 2, 3), id="rgb"),
        pytest.param(one("L", 9), (9, 9, 9), id="grey"),
        pytest.param(one("1", 1), (255, 255, 255), id="bilevel"),
        pytest.param(one("LA", (0, 0)), (255, 255, 255), id="clear grey is white"),
        pytest.param(one("RGBA", (0, 0, 0, 0)), (255, 255, 255), id="clear black is white"),
        pytest.param(one("RGBA", (0, 100, 200, 128)), (127, 177, 227), id="half clear"),
        pytest.param(one("RGB", (5, 6, 7), transparency=(5, 6, 7)), (255, 255, 255), id="colour key"),
        pytest.param(one("L", 5, transparency=5), (255, 255, 255), id="grey key"),
        pytest.param(sixteen_bit(0xFFFF), (255, 255, 255), id="16 bit white"),
        pytest.param(sixteen_bit(0x8080), (128, 128, 128), id="16 bit middle grey is no white"),
        pytest.param(sixteen_bit(0x0100), (1, 1, 1), id="16 bit nearly black"),
        pytest.param(sixteen_bit(0x4040, "TIFF"), (64, 64, 64), id="16 bit tiff"),
        pytest.param(one("CMYK", (0, 0, 0, 0), kind="TIFF"), (255, 255, 255), id="cmyk paper"),
        pytest.param(one("CMYK", (255, 0, 0, 0), kind="TIFF"), (0, 255, 255), id="cmyk cyan"),
        pytest.param(one("CMYK", (0, 0, 0, 255), kind="JPEG", quality=100), (0, 0, 0), id="cmyk jpeg"),
        pytest.param(one("RGB", (1, 2, 3), kind="BMP"), (1, 2, 3), id="bmp"),
        pytest.param(one("RGB", (1, 2, 3), kind="TIFF"), (1, 2, 3), id="tiff"),
        pytest.param(one("RGB", (1, 2, 3), kind="WEBP", lossless=True), (1, 2, 3), id="webp"),
        pytest.param(one("RGBA", (1, 2, 3, 0), kind="WEBP", lossless=True), (255, 255, 255), id="clear webp"),
    ],
)
def test_a_file_becomes_the_colour_a_viewer_shows(data: bytes, expected: tuple[int, int, int]) -> None:
    """Pillow's plain convert("RGB") gets half of these wrong: clipped, black, or a crash in the model."""
    shown = values(decode(data, LIMITS))
    assert shown.shape == (4, 4, 3)
    assert (shown == expected).all()


def test_sixteen_bit_colour_is_scaled() -> None:
    """Written by hand, since Pillow cannot save it."""
    rows = b"".join(b"\0" + struct.pack(">3H", 0xFFFF, 0x8000, 0x0101) * 2 for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    assert (values(decode(data, LIMITS)) == (255, 128, 1)).all()


def test_every_sixteen_bit_grey_goes_to_the_nearest() -> None:
    """All 65,536 of them: the shift stands for a division."""
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    shown = values(decode(saved(Pillow.fromarray(every), "PNG"), LIMITS))[..., 0]
    assert (shown == np.rint(every / 257)).all()


def test_a_palette_and_its_transparency_are_understood() -> None:
    """Transparent GIFs and small PNGs are palettes with one clear entry."""
    picture = Pillow.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putdata([0, 1])
    for kind in ("PNG", "GIF"):
        shown = values(decode(saved(picture, kind, transparency=1), LIMITS))
        assert shown.tolist() == [[[10, 20, 30], [255, 255, 255]]], kind


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_of_several_frames_the_first_counts(kind: str) -> None:
    """An animation is edited as its first picture."""
    red, blue = Pillow.new("RGB", (8, 8), "red"), Pillow.new("RGB", (8, 8), "blue")
    data = saved(
        red, kind, save_all=True, append_images=[blue], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert (values(decode(data, LIMITS)) == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_turned_photograph_is_turned_back(kind: str, orientation: int) -> None:
    """Phones store every photograph sideways and say so in EXIF; the model must see it upright."""
    upright = Pillow.new("RGB", (48, 32), "white")
    upright.paste("black", (0, 0, 24, 16))  # a mark in the upper left corner
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the turn whose inverse the tag names
    stored = upright
    if orientation > 1:
        stored = upright.transpose(Pillow.Transpose(undo[orientation]))
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    shown = decode(saved(stored, kind, exif=exif), LIMITS)
    assert shown.size == (48, 32)
    assert values(shown)[4, 4].max() < 40
    assert values(shown)[28, 44].min() > 215


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_metadata_does_not_refuse_a_sound_picture() -> None:
    """Editors write all sorts of EXIF."""
    data = saved(Pillow.new("RGB", (8, 8), "red"), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    assert decode(data, LIMITS).size == (8, 8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_half_a_file_is_refused(kind: str) -> None:
    """Half a picture edited is worse than an error."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = saved(Pillow.fromarray(noise), kind)
    assert code_of(data[: len(data) // 2]) == "invalid_image"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"hello, I am a picture", id="text"),
        pytest.param(b"\x89PNG\r\n\x1a\n", id="signature alone"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", id="svg"),
        pytest.param(one("F", 0.5, kind="TIFF"), id="float"),
        pytest.param(one("I", 70000, kind="TIFF"), id="32 bit"),
        pytest.param(b"\0" * 1000, id="zeros"),
    ],
)
def test_what_is_no_supported_picture_is_refused(data: bytes) -> None:
    """The caller's fault, so never an exception of another kind."""
    assert code_of(data) == "invalid_image"


def test_postscript_is_refused_before_any_reader_sees_it(tmp_path: Path) -> None:
    """Pillow's EPS reader starts Ghostscript, a program with a history."""
    trace = tmp_path / "started"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o755)
    eps = tmp_path / "picture.eps"
    Pillow.new("RGB", (8, 8)).save(eps, "EPS")
    script = (
        "import sys; from PIL import Image, EpsImagePlugin\n"
        "from api.images import ImageLimits, decode\n"
        "data = open(sys.argv[1], 'rb').read()\n"
        "try: decode(data, ImageLimits())\n"
        "except Exception as error: print(error.code)\n"
        "import os; print(os.path.exists(sys.argv[2]))\n"
        "try: Image.open(sys.argv[1]).load()\n"  # the control: Pillow by itself does start it
        "except Exception: pass\n"
        "print(os.path.exists(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(eps), str(trace)],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["invalid_image", "False", "True"]


def gif_header(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + b"," + bytes(9) + b"\x02"


def bmp_header(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def webp_header(width: int, height: int) -> bytes:
    extended = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    small = saved(Pillow.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + extended + small
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_header(width: int, height: int) -> bytes:
    data = saved(Pillow.new("RGB", (16, 16)), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def tiff_header(width: int, height: int) -> bytes:
    data = saved(Pillow.new("RGB", (16, 16)), "TIFF")
    for tag, side in ((256, width), (257, height)):
        data = data.replace(struct.pack("<HHII", tag, 4, 1, 16), struct.pack("<HHII", tag, 4, 1, side))
    return data


BOMBS: dict[str, Callable[[int, int], bytes]] = {
    "png": png_header,
    "gif": gif_header,
    "bmp": bmp_header,
    "jpeg": jpeg_header,
    "tiff": tiff_header,
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("side", [7000, 10_000, 50_000])
def test_a_bombs_header_is_enough_to_refuse_it(kind: str, side: int) -> None:
    """Below Pillow's warning, between its warning and its error, and above both."""
    assert code_of(BOMBS[kind](side, side)) == "image_too_large"


def test_a_bomb_costs_neither_time_nor_memory() -> None:
    """A 50,000 x 50,000 header: under 100 ms of CPU and 50 MB, measured in a process of its own."""
    script = (
        "import resource, sys, time\n"
        "from api.images import ImageLimits, decode\n"
        "bomb = bytes.fromhex(sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; start = time.process_time()\n"
        "try: decode(bomb, ImageLimits())\n"
        "except Exception as error: print(error.code)\n"
        "print((time.process_time() - start) * 1000)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, png_header(50_000, 50_000).hex()],
        capture_output=True,
        text=True,
        check=True,
    )
    code, milliseconds, megabytes = done.stdout.split()
    assert code == "image_too_large"
    assert float(milliseconds) < 100
    assert float(megabytes) < 50


def test_a_large_webp_canvas_is_refused() -> None:
    """Also one that other formats may have: its reader would hold up the whole process."""
    assert code_of(webp_header(16_000, 16_000)) == "image_too_large"
    assert code_of(saved(Pillow.new("RGB", (3000, 3000)), "WEBP", method=0)) == "image_too_large"


def test_a_jpeg_that_is_drawn_over_and_over_is_refused() -> None:
    """Each scan passes over every pixel: a few megabytes of them would occupy a thread for minutes."""
    data = saved(Pillow.new("RGB", (64, 64), "red"), "JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    assert decode(data, LIMITS).size == (64, 64)
    assert code_of(data[:-2] + last_scan * 200 + data[-2:]) == "invalid_image"


def test_the_limits_are_the_callers() -> None:
    """Settings decide, not Pillow."""
    data = one("RGB", (0, 0, 0))
    assert decode(data, ImageLimits(max_pixels=16)).size == (4, 4)
    assert code_of(data, ImageLimits(max_pixels=15)) == "image_too_large"
    assert code_of(data, ImageLimits(max_bytes=len(data) - 1)) == "image_too_large"


def test_the_digest_names_the_content() -> None:
    """Caches of reference latents are keyed by it, across callers."""
    first, again, other = (decode(one("RGB", (n, 0, 0)), LIMITS).digest for n in (1, 1, 2))
    assert first == again != other


def noise(width: int, height: int, seed: int = 0) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 256, width * height * 3, dtype=np.uint8)
    return Image(pixels=pixels.tobytes(), width=width, height=height)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 5))
def test_our_png_reads_back_exactly(width: int, height: int, seed: int) -> None:
    """The writer is our own, so another's reader has the last word on it."""
    image = noise(width, height, seed)
    data = encode(image, "png", image.size)
    with Pillow.open(io.BytesIO(data)) as read:
        read.verify()
    with Pillow.open(io.BytesIO(data)) as read:
        assert (read.mode, read.size, read.tobytes()) == ("RGB", image.size, image.pixels)


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_every_format_is_what_it_says_and_of_the_size_asked_for(image_format: ImageFormat) -> None:
    """A canvas is a multiple of 16; the caller asked for something else."""
    flat = Image(pixels=bytes((200, 100, 50)) * (112 * 80), width=112, height=80)
    data = encode(flat, image_format, (100, 75))
    with Pillow.open(io.BytesIO(data)) as read:
        assert read.format == image_format.upper()
        assert read.size == (100, 75)
        colour = np.asarray(read.convert("RGB")).astype(int)
    assert np.abs(colour - (200, 100, 50)).max() <= 6


def test_encoding_hashes_nothing() -> None:
    """Only pictures that come in are looked up by their digest; hashing an answer would cost a third of
    encoding it."""

    def hashes(call: Callable[[], object]) -> int:
        names: list[str] = []
        sys.setprofile(lambda frame, event, arg: names.append(getattr(arg, "__name__", "")))
        try:
            call()
        finally:
            sys.setprofile(None)
        return names.count("openssl_sha256")

    image = noise(64, 64)
    assert hashes(lambda: [encode(image, kind, (50, 40)) for kind in IMAGE_FORMATS]) == 0
    file = encode(image, "png", image.size)
    assert hashes(lambda: decode(file, LIMITS)) >= 1  # the control


def test_png_is_small_on_what_pngs_are_good_at() -> None:
    """The filter is there for a reason: without it a gradient would hardly shrink."""
    ramp = np.add.outer(np.arange(256), np.arange(256)).astype(np.uint8)
    image = Image(pixels=np.dstack([ramp] * 3).tobytes(), width=256, height=256)
    assert len(encode(image, "png", image.size)) < len(image.pixels) / 20
