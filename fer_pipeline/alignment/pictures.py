"""Decode untrusted bytes to an upright 8-bit RGB picture, or raise a `Rejection` with a short stable reason.

The size is judged by the header before a pixel is decoded. EXIF orientation is applied, the first frame of an animation
is taken, 16-bit grey is scaled and not clipped, transparency is laid over a stated background. A JPEG whose data the
decoder had to guess is damaged: libjpeg only warns of it and Pillow hides that, so its strict decoding is asked first.
"""

import io
import warnings
from typing import Annotated, Literal

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
from pydantic import Field

from fer_pipeline.core.settings import Settings

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")  # none that starts a program
TRANSPARENT_MODES = ("RGBA", "RGBa", "LA", "La", "PA")

UPRIGHT = {  # by EXIF orientation; ImageOps.exif_transpose also writes metadata anew, which fails on damaged ones
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Level = Annotated[int, Field(ge=0, le=255)]


class Rejection(Exception):  # noqa: N818 - no error of the program: the picture cannot be used, and this says why
    """Why a picture gives no face: one of a few short reasons that are counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PictureSettings(Settings):
    """Which pictures are taken at all."""

    min_side: Annotated[int, Field(ge=1)] = 16
    max_pixels: Annotated[int, Field(ge=1)] = 50_000_000  # more is taken for a decompression bomb
    background: tuple[Level, Level, Level] = (255, 255, 255)  # RGB under transparent pixels
    damaged: Literal["reject", "keep"] = "reject"  # JPEGs of which a decoder can still make something


def decode_picture(data: bytes, settings: PictureSettings | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the picture, or raises a `Rejection`.

    Its reasons are empty, not_an_image, too_many_pixels, too_small, truncated and damaged.
    """
    if not data:
        raise Rejection("empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata: they say nothing about the pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return _decode(data, settings or PictureSettings())
        except Rejection:
            raise
        except UnidentifiedImageError:
            raise Rejection("not_an_image") from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise Rejection("too_many_pixels") from None
        except Exception as error:  # decoders fail in many ways on damaged bytes; none may stop a run of millions
            message = str(error).lower()
            cut = isinstance(error, EOFError) or "truncated" in message or "premature end of jpeg file" in message
            raise Rejection("truncated" if cut else "damaged") from None


def _decode(data: bytes, settings: PictureSettings) -> UInt8[np.ndarray, "h w 3"]:
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        width, height = picture.size
        if width * height > settings.max_pixels:
            raise Rejection("too_many_pixels")
        if min(width, height) < settings.min_side:
            raise Rejection("too_small")
        pixels = None
        if picture.format == "JPEG" and picture.mode in ("L", "RGB"):
            try:  # the same pixels as Pillow's, twice as fast
                pixels = simplejpeg.decode_jpeg(data, colorspace="RGB")
            except ValueError as error:
                # Bytes between two markers are harmless and common: Pillow is to try.
                if settings.damaged == "reject" and "extraneous" not in str(error).lower():
                    raise
        try:
            orientation = int(picture.getexif().get(ExifTags.Base.Orientation, 1))
        except Exception:  # damaged metadata says nothing about the pixels
            orientation = 1
        if pixels is not None and orientation not in UPRIGHT:
            return pixels
        upright = picture if pixels is None else Image.fromarray(pixels)
        upright.load()
        if orientation in UPRIGHT:
            upright = upright.transpose(UPRIGHT[orientation])
        upright = _to_eight_bits(upright)
        if upright.mode in TRANSPARENT_MODES or "transparency" in upright.info:
            under = Image.new("RGBA", upright.size, (*settings.background, 255))
            upright = Image.alpha_composite(under, upright.convert("RGBA"))
        return np.array(upright.convert("RGB"))


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """Scales deeper grey by its range: 16 bits, or floats of 0 to 1; Pillow's own conversion would clip it."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    levels = np.asarray(picture, dtype=np.float64)
    if not np.isfinite(levels).all() or levels.min() < 0 or levels.max() > 65535:
        raise Rejection("damaged")
    highest = 65535
    if picture.mode == "F":
        highest = next(limit for limit in (1, 255, 65535) if levels.max() <= limit)
    return Image.fromarray(np.rint(levels * (255 / highest)).astype(np.uint8))
