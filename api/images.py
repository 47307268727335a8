"""Encoded pictures to pixels and back: every quirk of files ends here, so no other part knows any.

Both directions are plain functions that take milliseconds of CPU: call them through ``api.codec``,
never on the event loop or the device thread.
"""

import hashlib
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from PIL import Image as Pillow
from PIL import ImageFile

from api.png import NO_TEXT as NO_TEXT
from api.png import png
from core.errors import RequestError
from core.request import Image, Size

ImageFormat = Literal["png", "jpeg", "webp"]
IMAGE_FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)

# An allow-list: Pillow's other readers include EPS, which would start Ghostscript.
_READABLE = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")

# Pillow's WebP reader keeps the GIL, about 10 ms for a million pixels: more would stall everybody.
_WEBP_PIXELS = 8_000_000

# Encoders write about ten; each costs a pass over all pixels, so a small file could take minutes.
_JPEG_SCANS = 100

# Process-wide, because catch_warnings is not safe with threads: a suspected decompression bomb is an error.
warnings.filterwarnings("error", category=Pillow.DecompressionBombWarning)

# Also process-wide: fewer, larger blocks. Between blocks the GIL changes hands, which costs more on a busy
# server than the copying does.
ImageFile.MAXBLOCK = 2**22

# EXIF orientation to the turn that undoes it (Exif 2.32, tag 0x0112).
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLimits:
    max_bytes: int = 25 * 2**20  # encoded
    max_pixels: int = 40_000_000  # decoded


def decode(data: bytes, limits: ImageLimits) -> Image:
    """The first frame as upright 8-bit RGB; transparency becomes white.

    The bytes decide the format; nobody's declaration is asked. Raises ``RequestError``:
    ``image_too_large`` (from the header alone, before any pixel is decoded) or ``invalid_image``.
    """
    return _read(data, limits, _eight_bit_rgb, hashlib.sha256(data).hexdigest())


def decode_mask(data: bytes, limits: ImageLimits) -> Image:
    """White where the first frame is transparent, black where it is opaque; without alpha, as ``decode``.

    Raises as ``decode``, and ``RequestError`` ``invalid_parameter`` for one that is opaque all over.
    """
    # Another name than the same file's has as a picture.
    return _read(data, limits, _clear_is_white, hashlib.sha256(b"mask:" + data).hexdigest())


def _read(
    data: bytes, limits: ImageLimits, convert: Callable[[Pillow.Image], Pillow.Image], digest: str
) -> Image:
    if len(data) > limits.max_bytes:
        raise too_many_bytes(limits)
    try:
        with Pillow.open(io.BytesIO(data), formats=_READABLE) as picture:
            most = limits.max_pixels
            if picture.format == "WEBP":
                most = min(most, _WEBP_PIXELS)
            if picture.width * picture.height > most:
                raise RequestError(
                    "image_too_large",
                    f"an image of {picture.width}x{picture.height} is over the limit of {most} pixels "
                    f"for {picture.format}; make it smaller",
                )
            if picture.info.get("progressive") and data.count(b"\xff\xda") > _JPEG_SCANS:
                raise RequestError("invalid_image", f"a JPEG of over {_JPEG_SCANS} scans is not accepted")
            picture.load()
            upright = _upright(picture)
            pixels = convert(upright).tobytes()
    except RequestError:
        raise
    except (Pillow.DecompressionBombWarning, Pillow.DecompressionBombError):
        raise RequestError(
            "image_too_large", f"the image is over the limit of {limits.max_pixels} pixels; make it smaller"
        ) from None
    except Exception:  # Pillow's readers raise nearly anything on a broken file
        raise RequestError(
            "invalid_image",
            "the image cannot be read; send a complete PNG, JPEG, WebP, GIF, TIFF or BMP file",
        ) from None
    return Image(
        pixels=pixels,
        width=upright.width,
        height=upright.height,
        digest=digest,
    )


def too_many_bytes(limits: ImageLimits) -> RequestError:
    return RequestError(
        "image_too_large",
        f"the image file is over the limit of {limits.max_bytes} bytes; send a smaller or JPEG one",
    )


def _upright(picture: Pillow.Image) -> Pillow.Image:
    try:
        orientation = picture.getexif().get(_ORIENTATION)
    except Exception:  # damaged metadata is no reason to refuse a sound picture
        return picture
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


def _eight_bit_rgb(picture: Pillow.Image) -> Pillow.Image:
    if picture.mode.startswith("I;16"):
        return _from_sixteen_bit(picture)
    if picture.mode in ("I", "F"):
        # Their white point is anyone's guess, and Pillow's own conversion clips at 255.
        raise RequestError(
            "invalid_image", "images with 32 bits per channel are not supported; save it with 8 or 16"
        )
    if _has_alpha(picture):
        clear = picture.convert("RGBA")
        shown = Pillow.new("RGB", clear.size, "white")
        shown.paste(clear, mask=clear.getchannel("A"))  # alpha_composite would not let go of the GIL
        return shown
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _clear_is_white(picture: Pillow.Image) -> Pillow.Image:
    if not _has_alpha(picture):
        return _eight_bit_rgb(picture)
    alpha = picture.convert("RGBA").getchannel("A")
    if alpha.getextrema() == (255, 255):
        raise RequestError(
            "invalid_parameter",
            "the mask is opaque all over; make it transparent where the picture is to be painted anew",
        )
    return alpha.point(range(255, -1, -1)).convert("RGB")


def _has_alpha(picture: Pillow.Image) -> bool:
    return "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "RGBa", "La")


def _from_sixteen_bit(picture: Pillow.Image) -> Pillow.Image:
    """Scaled, where Pillow's ``convert`` would clip everything above 255 to white."""
    import numpy as np  # here, because 0.1 s of import would delay a server's first answer

    values = np.asarray(picture).astype(np.uint32)
    grey = ((values * 255 + 32895) >> 16).astype(np.uint8)  # the nearest of value * 255 / 65535
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Pillow.fromarray(grey).convert("RGB")


def encode(
    image: Image,
    image_format: ImageFormat,
    size: Size,
    text: Mapping[str, str] = NO_TEXT,
    quality: int | None = None,
) -> bytes:
    """An image file of exactly ``size``; Lanczos where the picture has another size.

    text: by keyword (Latin-1, 1 to 79 characters), written into a PNG; other formats go without.
    quality: of JPEG and WebP, 0 to 100; None is ours.
    """
    pixels = image.pixels  # and no other ``Image``: it would hash what nobody looks up
    if image.size != size:
        pixels = _pillow(pixels, image.size).resize(size, Pillow.Resampling.LANCZOS).tobytes()
    match image_format:
        case "png":
            return png(pixels, size, text=text)
        case "jpeg":
            return _save(pixels, size, "JPEG", quality=95 if quality is None else max(1, quality))
        case "webp":
            # On photographs method 0 takes a third of the time of Pillow's default (4) at equal size.
            return _save(pixels, size, "WEBP", quality=90 if quality is None else quality, method=0)


def _pillow(pixels: bytes, size: Size) -> Pillow.Image:
    return Pillow.frombuffer("RGB", size, pixels, "raw", "RGB", 0, 1)


def _save(pixels: bytes, size: Size, name: str, **options: int) -> bytes:
    out = io.BytesIO()
    _pillow(pixels, size).save(out, name, **options)
    return out.getvalue()
