"""Decode untrusted bytes to an upright 8-bit RGB picture, or raise a `Rejection` with a short stable reason.

The size is judged by the header before a pixel is decoded, and so is the memory that decoding and conversion will take,
which differs by format and mode (`picture_memory`); colours are converted in strips of rows. A JPEG whose data the
decoder had to guess is damaged: libjpeg only warns of it and Pillow hides that, so its strict decoding is asked first.
Else the picture is what a viewer shows a person, since people labelled what they saw:

- *Orientation* of EXIF (or XMP, where Pillow reads it) is applied, once: Pillow turns a TIFF itself while it loads it.
- *Colour*: an embedded ICC profile is converted to sRGB, as browsers do. One that moves no colour by more than two
  levels, as every profile of sRGB itself, changes nothing. A profile for other colours than the picture's is ignored,
  as viewers do; one that cannot be read is a rejection of its own. PNG's gAMA, cHRM and cICP are not applied, nor
  EXIF's ColorSpace: programs disagree about them. CMYK without a profile is converted by subtraction. CMYK and YCCK
  JPEGs are taken as inverted, Adobe's way, with or without Adobe's marker, as browsers take them.
- *Depth*: deeper grey is scaled by its range, neither clipped nor wrapped. The range is that of the fewest usual bits
  (8, 10, 12, 14, 16 or more) that hold the brightest pixel, or the range that the file states where that is wider:
  cameras store 12 bits in 16. Floats may also be 0 to 1. Deep colours are cut to their upper 8 bits by Pillow.
- *Frames*: the first of an animation or page of a TIFF; of an APNG the still picture.
- *Transparency* is laid over a stated background.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin, UnidentifiedImageError
from pydantic import Field

from fer_pipeline.alignment.picture_memory import (
    LARGEST_PROFILE,
    LARGEST_WEBP,
    HeaderStream,
    check_tags,
    check_whole,
    estimate_bytes,
)
from fer_pipeline.core.settings import Settings

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")  # none that starts a program
TRANSPARENT_MODES = ("RGBA", "RGBa", "LA", "La", "PA")

MEMORY = 280_000_000  # bytes that a picture may take while it is decoded; more where `max_pixels` says so
BYTES_PER_PIXEL = 6  # of `max_pixels` where it is raised
PIXELS_PER_STRIP = 250_000
LARGEST_PROFILE_KEPT = 4_000_000  # bytes

# By EXIF orientation: whether rows and columns change places, and their directions in the upright picture.
UPRIGHT = {
    1: (False, 1, 1),
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, -1, 1),
    7: (True, -1, -1),
    8: (True, 1, -1),
}

BITS = (8, 10, 12, 14, *range(16, 33))  # of deep grey
PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # Pillow's mode by the profile's word for its colours
MAX_SAMPLE_VALUE, S_MAX_SAMPLE_VALUE = 281, 341  # tags of TIFF
VISIBLE = 2  # levels; a profile that moves no colour by more is sRGB, rounded

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
    damaged: Literal["reject", "keep"] = "reject"  # JPEGs and profiles of which a decoder can still make something


def decode_picture(data: bytes, settings: PictureSettings | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the picture, or raises a `Rejection`.

    Its reasons are empty, not_an_image, too_large_a_file, too_many_pixels, too_small, truncated, damaged and
    damaged_profile.
    """
    if not data:
        raise Rejection("empty")
    with _rejecting():
        return _decode(data, settings or PictureSettings())


def read_size(data: bytes) -> tuple[int, int]:
    """Returns width and height as stored, by the header alone; raises a `Rejection` where there is no header."""
    with _rejecting(), Image.open(HeaderStream(data), formats=FORMATS) as picture:
        return picture.size


@contextmanager
def _rejecting() -> Iterator[None]:
    """Makes a `Rejection` of whatever goes wrong with a picture, and takes warnings for what they mean."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata: they say nothing about the pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
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
    stream, most = HeaderStream(data), max(MEMORY, BYTES_PER_PIXEL * settings.max_pixels)
    if (data.startswith(b"RIFF") and len(data) > LARGEST_WEBP) or len(data) + 3 * stream.tags > most:
        raise Rejection("too_large_a_file")
    with Image.open(stream, formats=FORMATS) as picture:
        stream.is_header = False
        width, height = picture.size
        if width * height > settings.max_pixels:
            raise Rejection("too_many_pixels")
        if min(width, height) < settings.min_side:
            raise Rejection("too_small")
        if picture.format != "JPEG" or settings.damaged == "reject":
            check_whole(picture, stream)
        pixels = None
        if picture.format == "JPEG" and picture.mode in ("L", "RGB"):
            turned = _find_orientation(picture) > 1
            if estimate_bytes(picture, stream, by_pillow=False, results=1 + turned) > most:
                raise Rejection("too_many_pixels")
            try:  # the same pixels as Pillow's, twice as fast
                pixels = simplejpeg.decode_jpeg(data, colorspace="RGB")
            except ValueError as error:
                # Bytes between two markers are harmless and common: Pillow is to try.
                if settings.damaged == "reject" and "extraneous" not in str(error).lower():
                    raise
        if pixels is None:
            if estimate_bytes(picture, stream, by_pillow=True) > most:
                raise Rejection("too_many_pixels")
            picture.load()  # first, because Pillow turns a TIFF here, and forgets that it was to be turned
        orientation = _find_orientation(picture)
        transform = _find_transform(picture, keep_damaged=settings.damaged == "keep")
        if pixels is None:
            return _convert(picture, orientation, transform, settings.background)
        if transform is not None:
            for first, strip in _strips(pixels):
                rgb = _to_rgb(Image.fromarray(strip), transform, settings.background)
                pixels[first : first + len(strip)] = np.asarray(rgb)
        if orientation == 1:
            return pixels
        upright, stored = _turned(pixels.shape[:2], orientation)
        stored[:] = pixels
        return upright


def _find_orientation(picture: Image.Image) -> int:
    """Returns EXIF's number; 1 where it is none, or the metadata are damaged, which says nothing about the pixels."""
    try:
        if isinstance(exif := picture.info.get("exif"), bytes):
            check_tags(exif)
        orientation = int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1
    return orientation if orientation in UPRIGHT else 1


def _turned(size: tuple[int, ...], orientation: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns an empty upright picture for one that is stored in (rows, columns), and its view as stored."""
    transposed, down, right = UPRIGHT[orientation]
    upright = np.empty((*(reversed(size) if transposed else size), 3), np.uint8)
    return upright, (upright.swapaxes(0, 1) if transposed else upright)[::down, ::right]


def _convert(
    picture: Image.Image,
    orientation: int,
    transform: ImageCms.ImageCmsTransform | None,
    background: tuple[int, int, int],
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the upright picture in 8 bits, converted in strips."""
    upright, stored = _turned((picture.height, picture.width), orientation)
    to_eight_bits = _scale_grey(picture) if picture.mode.startswith(("I", "F")) else lambda strip: strip
    for first, strip in _crops(picture):
        rgb = _to_rgb(to_eight_bits(strip), transform, background)
        stored[first : first + strip.height] = np.asarray(rgb)
    return upright


def _strips(pixels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    rows = max(1, PIXELS_PER_STRIP // pixels.shape[1])
    return ((first, pixels[first : first + rows]) for first in range(0, len(pixels), rows))


def _crops(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yields strips with the number of their first row; they keep palette and transparency."""
    rows = max(1, PIXELS_PER_STRIP // picture.width)
    for first in range(0, picture.height, rows):
        yield first, picture.crop((0, first, picture.width, min(first + rows, picture.height)))


def _find_transform(picture: Image.Image, *, keep_damaged: bool) -> ImageCms.ImageCmsTransform | None:
    """Returns the transform of the picture's colours to sRGB, or None where they are shown as they are."""
    if picture.mode == "LAB":
        return _build_transform("LAB")
    if "icc_profile" not in picture.info:
        return None
    try:
        profile = picture.info["icc_profile"]
        if len(profile or b"") > LARGEST_PROFILE:
            raise ValueError("too large a profile")
        kept = len(profile or b"") <= LARGEST_PROFILE_KEPT
        transform = _build_transform(profile) if kept else _build_transform.__wrapped__(profile)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):  # Pillow gives None for a profile in a broken chunk
        if keep_damaged:
            return None
        raise Rejection("damaged_profile") from None
    grey = picture.mode in ("1", "L", "LA", "La", "F") or picture.mode.startswith("I")
    fitting = {"L", "RGB"} if grey else {"CMYK" if picture.mode == "CMYK" else "RGB"}
    return transform if transform is not None and transform.input_mode in fitting else None


@lru_cache(maxsize=16)
def _build_transform(profile: bytes | Literal["LAB"] | None) -> ImageCms.ImageCmsTransform | None:
    """Builds the transform from an ICC profile to sRGB; None where no eye sees a difference.

    Relative colorimetric with black point compensation: white stays white, black stays black, as viewers do it.
    """
    if profile == "LAB":
        source, mode = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB"
    else:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
        opened: Any = source.profile
        mode = PROFILE_MODES.get(opened.xcolor_space.strip())
    if mode is None:
        return None
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    if mode == "L":
        flags |= ImageCms.Flags.NOOPTIMIZE  # whose short cut is 10 levels off in the shadows of linear grey
    intent, target = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(source, target, mode, "RGB", intent, flags)
    if mode in ("L", "RGB"):
        levels = np.arange(256) if mode == "L" else np.moveaxis(np.mgrid[:256:17, :256:17, :256:17], 0, -1)
        before = Image.fromarray(levels.astype(np.uint8).reshape(1, -1, *levels.shape[3:]))
        after = _transform(before, transform)
        if np.abs(np.asarray(before.convert("RGB"), int) - np.asarray(after, int)).max() <= VISIBLE:
            return None
    return transform


def _to_rgb(
    picture: Image.Image, transform: ImageCms.ImageCmsTransform | None, background: tuple[int, int, int]
) -> Image.Image:
    """Converts the colours to sRGB and lays what is transparent over the background."""
    alpha = None
    if picture.mode in TRANSPARENT_MODES or "transparency" in picture.info:
        picture = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        alpha = picture.getchannel("A")
    colours = picture.convert("RGB") if transform is None else _transform(picture, transform)
    if alpha is None:
        return colours
    colours.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", picture.size, (*background, 255)), colours).convert("RGB")


def _transform(picture: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    if picture.mode != transform.input_mode:  # grey that has become RGB on the way has three equal channels
        picture = picture.convert("RGB").convert(transform.input_mode)
    if picture.mode == "L" and picture.width * picture.height > 256:  # of 256 levels, each only once
        table = np.asarray(_transform(Image.fromarray(np.arange(256, dtype=np.uint8)[None]), transform))[0]
        return Image.fromarray(table[np.asarray(picture)])
    rgb = ImageCms.applyTransform(picture, transform)
    assert rgb is not None, "it is None only in place"
    return rgb


def _scale_grey(picture: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Returns what scales a strip of deeper grey by the picture's range; Pillow's own conversion would clip it."""
    tags: Any = picture.tag_v2 if isinstance(picture, TiffImagePlugin.TiffImageFile) else {}
    signed = tags.get(TiffImagePlugin.SAMPLEFORMAT) == (2,)

    def levels_of(strip: Image.Image) -> np.ndarray:
        levels = np.asarray(strip)
        if picture.mode == "I" and not signed:
            levels = levels.view(np.uint32)  # Pillow has no other place for them
        return levels.astype(np.float64)

    limits = [2**bits - 1 for bits in BITS]
    if picture.mode == "F":
        limits.insert(0, 1)
    elif signed and tags.get(TiffImagePlugin.BITSPERSAMPLE) == (16,):
        limits = [*limits[:4], 32767]
    brightest = _stated_maximum(picture, tags)
    for _, strip in _crops(picture):
        levels = levels_of(strip)
        if not np.isfinite(levels).all() or levels.min() < 0 or levels.max() > limits[-1]:
            raise Rejection("damaged")
        brightest = max(brightest, levels.max())
    highest = next(limit for limit in limits if brightest <= limit)
    white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0  # which Pillow heeds up to 8 bits only
    transparent = picture.info.get("transparency")

    def to_eight_bits(strip: Image.Image) -> Image.Image:
        levels = levels_of(strip)
        if white_is_zero:
            levels = highest - levels
        grey = Image.fromarray(np.rint(levels * (255 / highest)).astype(np.uint8))
        if isinstance(transparent, int):
            grey.putalpha(Image.fromarray(np.where(np.asarray(strip) == transparent, 0, 255).astype(np.uint8)))
        return grey

    return to_eight_bits


def _stated_maximum(picture: Image.Image, tags: Any) -> float:
    """Returns the highest level that the file says it may hold; 0 where it says nothing.

    The maximum in a TIFF's tags is a statistic, says the standard, so that it tells the bits and not the scale.
    """
    if picture.format in ("PPM", "JPEG2000"):  # which state it, and Pillow has scaled by it
        return 1 if picture.mode == "F" else 65535
    if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
        return 4095
    stated = [tags.get(MAX_SAMPLE_VALUE, 0), tags.get(S_MAX_SAMPLE_VALUE, 0)]
    return max(float(np.max(value)) for value in stated)
