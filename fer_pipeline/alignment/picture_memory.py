"""Estimate from a picture's header what memory its decoding takes, and refuse what takes too much or minutes.

No pixel is decoded for that. Importing this module bounds the text that Pillow reads of a PNG, and replaces Pillow's
decoder of PPMs by a fast one.

What counts is the file itself, what its metadata become, the decoder's own buffers, the picture as Pillow keeps it (4
bytes a pixel of RGB) and the 3 bytes a pixel of the result. The decoders' buffers were measured with Pillow 13. Headers
that cost more to read than a picture's are errors: what is small in a file may be large in memory, or take minutes.
Memory is the more for a picture that breaks only while it is decoded; one that is cut short is found before.
"""

import io
import struct
import sys
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin, PngImagePlugin, PpmImagePlugin, TiffImagePlugin

from fer_pipeline.alignment.av1 import count_pixels

MOST_METADATA = 16_000_000  # bytes before the pixels; the depth maps of telephones take 10 million
REFUSED_MEMORY = 95_000_000  # bytes that a picture may take that is refused by its header
LARGEST_WEBP = REFUSED_MEMORY // 3  # bytes of a file: its reader copies them twice before it tells the size
MOST_NUMBERS = 250_000  # in a tag, as the tiles of 50 million pixels; Python takes 300 bytes for each of them
MOST_READS = 10_000  # of a header, in parts
MOST_SCANS = 1_000  # of a JPEG
MOST_SCANNED = 2_500_000_000  # pixels in all scans of a JPEG, each of which takes time for all blocks of the picture
MOST_BLOCKS = 50_000  # strips or tiles of a TIFF that Pillow decodes one by one
MOST_PLAIN, MOST_COMMENTS = 20_000_000, 1_000  # bytes of a PPM in figures, and comments in it
LARGEST_PROFILE = 16_000_000  # bytes of an ICC profile; those of printers take 3 million

PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}  # in Pillow; 4 in other modes
RAW_BYTES = {"L": 1, "P": 1, "I;16": 2, "I;16B": 2, "RGB": 3, "BGR": 3, "RGBX": 4, "RGBA": 4, "BGRX": 4, "CMYK": 4}
DECODER_BYTES = {"WEBP": 14, "AVIF": 12, "GIF": 1}  # a pixel, beside the picture itself
JPEG2000_BYTES = 5  # a pixel and band
TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # by their type
OPAQUE_TYPES = (1, 2, 6, 7)  # whose values stay bytes
DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop)

PngImagePlugin.MAX_TEXT_MEMORY = MOST_METADATA


class HeaderStream(io.BytesIO):
    """The bytes of a file; `taken` counts what is read of them, and too much of it is an error in the header."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.tags = check_tags(data) if data.startswith((b"II", b"MM")) else 0  # of a TIFF, whose readers bound them
        self.most = sys.maxsize if self.tags else min(MOST_METADATA, max(10**6, (REFUSED_MEMORY - len(data)) // 3))
        self.is_header = True
        self.taken = self.reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        if size is not None and size >= 0:  # some decoders begin by taking the whole file
            self.taken += len(found)
            self.reads += 1
            if self.is_header and (self.taken > self.most or self.reads > MOST_READS):
                raise OSError(f"over {min(self.most, self.taken):,} bytes of metadata, or in over {MOST_READS:,} parts")
        return found


class ScaledDecoder(ImageFile.PyDecoder):
    """Decode a PPM whose maximum is not 255 or 65535, to the pixels of Pillow's own decoder, which takes minutes."""

    _pulls_fd = True

    def decode(self, buffer: Any) -> tuple[int, int]:
        """Decode in strips of rows."""
        assert self.fd is not None
        assert self.im is not None
        maximum, bands = self.args[-1], Image.getmodebands(self.mode)
        kind = np.dtype(">u2" if maximum > 255 else "u1")
        top, to = (65535, np.int32) if self.mode == "I" else (255, np.uint8)
        table = np.minimum(np.rint(np.arange(256**kind.itemsize) / maximum * top), top).astype(to)
        row = self.state.xsize * bands
        for first in range(0, self.state.ysize, rows := max(1, 2**20 // row)):
            height = min(rows, self.state.ysize - first)
            data = self.fd.read(height * row * kind.itemsize)
            if len(data) < height * row * kind.itemsize:
                raise EOFError
            levels = table[np.frombuffer(data, kind)].reshape(height, self.state.xsize, *([3] if bands == 3 else []))
            self.im.paste(Image.fromarray(levels).im, (0, first, self.state.xsize, first + height))
        return -1, 0


Image.register_decoder("ppm", ScaledDecoder)


def check_whole(picture: Image.Image, stream: HeaderStream) -> None:
    """Raises an EOFError for a picture that is cut short, and a ValueError for one that takes minutes to decode.

    Args:
        picture: With its header read and no more.
        stream: That it was read from, behind the header.
    """
    data, start = stream.getvalue(), stream.tell()
    tiles: Any = getattr(picture, "tile", None) or ()
    if isinstance(picture, JpegImagePlugin.JpegImageFile) and data.find(b"\xff\xd9", start) < 0:
        raise EOFError
    if isinstance(picture, PngImagePlugin.PngImageFile):
        place = 8
        while place + 8 <= len(data):
            length, kind = struct.unpack_from(">I4s", data, place)
            place += 12 + length
            if kind == b"IDAT" and place - 4 > len(data):
                raise EOFError
    if isinstance(picture, PpmImagePlugin.PpmImageFile) and tiles[0].codec_name == "ppm_plain":
        if len(data) > MOST_PLAIN or data.count(b"#") > MOST_COMMENTS:
            raise ValueError("a picture in figures, and too large for that")
    for codec, extents, offset, options in tiles if picture.format in ("PPM", "BMP", "TIFF") else ():
        raw = options if isinstance(options, str) else options[0]
        if codec == "raw" and offset + _area(extents) * RAW_BYTES.get(str(raw), 0) > len(data):
            raise EOFError
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        area = sum(_area(tile.extents) for tile in tiles)
        if len(tiles) > MOST_BLOCKS or area > len(picture.getbands()) * picture.width * picture.height:
            raise ValueError("too many strips or tiles")


def _area(extents: tuple[int, int, int, int]) -> int:
    left, upper, right, lower = extents
    return (right - left) * (lower - upper)


def estimate_bytes(picture: Image.Image, stream: HeaderStream, *, by_pillow: bool, results: int = 1) -> int:
    """Returns the bytes of memory that decoding takes at most.

    Args:
        picture: With its header read and no more.
        stream: That it was read from.
        by_pillow: Whether Pillow decodes it, or simplejpeg into the result.
        results: How many arrays of the result are needed at once.
    """
    pixel = 3 * results + DECODER_BYTES.get(picture.format or "", 0)
    pixel += PIXEL_BYTES.get(picture.mode, 4) if by_pillow else 0
    if picture.format == "JPEG2000":
        pixel += JPEG2000_BYTES * len(picture.getbands())
    size = len(stream.getvalue())  # which is no copy, as `getbuffer` would make one
    taken = 0 if stream.tags else 3 * stream.taken
    others = size + taken + sum(map(sys.getsizeof, picture.info.values()))
    if picture.format == "AVIF":
        known = 2 if picture.mode in ("RGBA", "LA") else 1  # transparency is a picture of its own
        hidden = count_pixels(stream.getvalue()) - known * picture.width * picture.height
        others += DECODER_BYTES["AVIF"] * max(0, hidden)
    if picture.format == "WEBP":
        others += 2 * size  # it copies the file twice
    if isinstance(picture, JpegImagePlugin.JpegImageFile):
        pixel += _coefficient_bytes(picture, stream)
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        others += 3 * stream.tags + _block_bytes(picture)
        if picture.tag_v2.get(ExifTags.Base.Orientation, 1) != 1:
            pixel += PIXEL_BYTES.get(picture.mode, 4)
    return others + pixel * picture.width * picture.height


def _coefficient_bytes(picture: JpegImagePlugin.JpegImageFile, stream: HeaderStream) -> int:
    """Returns the bytes that a pixel takes where all coefficients are kept until the last scan is read; else 0.

    Raises:
        ValueError: There are so many scans that decoding takes minutes.
    """
    data, end, layers = stream.getvalue(), stream.tell(), picture.layers
    scans = 1 + data.count(b"\xff\xda", end, max(end, data.find(b"\xff\xd9", end)))
    if scans > MOST_SCANS or scans * picture.width * picture.height > MOST_SCANNED:
        raise ValueError("too many scans")
    length = 6 + 2 * layers  # of the first scan's header if it has all colours
    if "progressive" not in picture.info and data[end - length : end - length + 3] == bytes((0, length, layers)):
        return 0
    shares = [(vertical, horizontal) for _, vertical, horizontal, _ in picture.layer]
    whole = max(vertical for vertical, _ in shares) * max(horizontal for _, horizontal in shares)
    # Two bytes a coefficient, rounded up.
    return -(-2 * sum(vertical * horizontal for vertical, horizontal in shares) // max(1, whole))


def _block_bytes(picture: TiffImagePlugin.TiffImageFile) -> int:
    """Returns the size of the buffer for a strip or a tile, which may be larger than the picture."""
    tags: Any = picture.tag_v2
    if picture.info.get("compression") == "raw":
        return 0
    names = (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH, TiffImagePlugin.ROWSPERSTRIP)
    width, height, rows = (value if isinstance(value := tags.get(name), int) else None for name in names)
    if width is None or height is None:
        width, height = picture.width, min(picture.height, picture.height if rows is None else rows)
    return width * height * max(4, sum(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) // 8)


def check_tags(data: bytes) -> int:
    """Returns how many bytes the tags of a TIFF, or of EXIF data, hold.

    Raises:
        ValueError: A tag has too many numbers, or an ICC profile is too large.
    """
    data = data.removeprefix(b"Exif\0\0")
    order, big = "<" if data.startswith(b"II") else ">", 43 in data[2:4]
    pointer, number, entry = (
        struct.Struct(order + form) for form in (("Q", "Q", "HHQQ") if big else ("L", "H", "HHLL"))
    )
    total, seen, header = 0, set(), 8 if big else 4
    directories = [pointer.unpack_from(data, header)[0]] if header + pointer.size <= len(data) else []
    while directories:
        place = directories.pop()
        if place in seen or place + number.size > len(data):
            continue
        seen.add(place)
        first, count = place + number.size, number.unpack_from(data, place)[0]
        for at in range(first, min(first + count * entry.size, len(data) - entry.size + 1), entry.size):
            tag, kind, numbers, value = entry.unpack_from(data, at)
            total += min(numbers * TAG_BYTES.get(kind, 0), len(data))
            if tag == TiffImagePlugin.ICCPROFILE and numbers > LARGEST_PROFILE:
                raise ValueError(f"an ICC profile of over {LARGEST_PROFILE:,} bytes")
            if kind not in OPAQUE_TYPES and kind in TAG_BYTES and MOST_NUMBERS < numbers <= len(data):
                raise ValueError(f"over {MOST_NUMBERS:,} numbers in a tag")
            if tag in DIRECTORIES:
                directories.append(value)
    return total
