"""What is small on the disk takes no more memory than is allowed: pictures within the limits and beyond, tables."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fer_pipeline.alignment.pictures import PictureSettings, Rejection, decode_picture
from fer_pipeline.core.errors import DataError
from fer_pipeline.datasets import csv, fer2013, recordio
from fer_pipeline.datasets._files import LARGEST_FILE, TooLargeError
from fer_pipeline.datasets._files import read_picture as read_file
from tests.fuzz import run
from tests.fuzz.readers import READERS, Reader

Make = Callable[[], bytes]


def plain(mode: str, side: int, format: str, **options: Any) -> Make:
    """A picture of one colour, which a few kilobytes hold."""

    def make() -> bytes:
        stream = io.BytesIO()
        Image.new(mode, (side, side)).save(stream, format, **options)
        return stream.getvalue()

    return make


def turned(side: int) -> Make:
    exif = Image.Exif()
    exif[0x0112] = 6
    return plain("RGB", side, "JPEG", exif=exif)


def with_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    """A small PNG with more chunks before its pixels."""
    data = plain("RGB", 64, "PNG")()
    more = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return data[:33] + b"".join(more) + data[33:]


def with_segments(*segments: tuple[int, bytes]) -> bytes:
    """A small JPEG with more segments before its pixels."""
    data = plain("RGB", 64, "JPEG")()
    more = [bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in segments]
    return data[:2] + b"".join(more) + data[2:]


def tiff(pixels: bytes, *, tags: dict[int, tuple[int, int, int]], more: bytes = b"") -> bytes:
    """A TIFF of 64 by 64 grey pixels; a tag's type, number and value or place. `more` stands behind the pixels."""
    fields = {256: (4, 1, 64), 257: (4, 1, 64), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1)} | tags
    entries = [struct.pack("<HHII", tag, *field) for tag, field in sorted(fields.items())]
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels) + len(more)) + pixels + more
    return head + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


GREY = bytes(64 * 64)
PLACE = 8 + len(GREY)
NUMBERS = 10_000_000
WIDE = zlib.compress(("a" * 1_000_000 + "\N{GRINNING FACE}").encode())
TILE = zlib.compress(bytes(20_000 * 2_500), 1)
IN_A_TILE = {259: (3, 1, 8), 322: (4, 1, 20_000), 323: (4, 1, 20_000), 324: (4, 1, 8), 325: (4, 1, len(TILE))}


def texts(number: int) -> bytes:
    return with_chunks(*[(b"iTXt", b"k%d\0\1\0\0\0" % one + WIDE) for one in range(number)])


def scans() -> bytes:
    data = plain("L", 64, "JPEG", progressive=True)()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 5000 + data[-2:]


def in_a_small_box(data: bytes) -> bytes:
    place = data.index(b"ispe") + 8
    return data[:place] + struct.pack(">II", 64, 64) + data[place + 8 :]


def cut(make: Make, share: float) -> Make:
    return lambda: (data := make())[: int(len(data) * share)]


def with_profile(size: int) -> bytes:
    """The tag of a profile holds its bytes behind the pixels."""
    return tiff(GREY, tags={273: (4, 1, 8), 279: (4, 1, len(GREY)), 34675: (7, size, PLACE)}, more=bytes(size))


def with_comment(size: int) -> bytes:
    data = plain("L", 64, "GIF")()
    return data[:-1] + (b"!\xfe" + (b"\xff" + bytes(255)) * (size // 256) + b"\0") + b";"


PICTURES: dict[str, tuple[Make, str]] = {  # and the outcome that is expected
    "16 bits": (plain("I;16", 7070, "PNG"), "picture"),
    "grey and transparent": (plain("LA", 6200, "PNG"), "picture"),
    "transparent": (plain("RGBA", 7070, "PNG"), "too_many_pixels"),
    "floats": (plain("F", 5900, "TIFF", compression="tiff_lzw"), "picture"),
    "inks": (plain("CMYK", 6200, "JPEG"), "picture"),
    "turned": (turned(6800), "picture"),
    "progressive": (plain("RGB", 6600, "JPEG", progressive=True), "picture"),
    "progressive, whole colours": (plain("RGB", 7070, "JPEG", progressive=True, subsampling=0), "too_many_pixels"),
    "WebP": (plain("RGBA", 3600, "WEBP", lossless=True), "picture"),
    "one strip": (plain("RGB", 6000, "TIFF", compression="tiff_lzw", strip_size=2**30), "too_many_pixels"),
    "WebP of many bytes": (lambda: b"RIFF\xff\xff\xff\0WEBPVP8 " + bytes(60_000_000), "too_large_a_file"),
    "profile": (lambda: with_chunks((b"iCCP", b"x\0\0" + zlib.compress(bytes(90_000_000)))), "damaged"),
    "long texts": (lambda: texts(15), "picture"),
    "longer texts": (lambda: texts(60), "damaged"),
    "segments": (lambda: with_segments(*[(0xE1, b"Exif\0\0" + bytes(65_000))] * 900), "damaged"),
    "many scans": (scans, "damaged"),
    "tile": (lambda: tiff(TILE, tags=IN_A_TILE), "too_many_pixels"),
    "frame larger than its box": (lambda: in_a_small_box(plain("RGB", 5000, "AVIF", speed=10)()), "too_many_pixels"),
    "cut, JPEG": (cut(plain("RGB", 6800, "JPEG"), 0.95), "truncated"),
    "cut, progressive": (cut(plain("RGB", 6600, "JPEG", progressive=True), 0.95), "truncated"),
    "cut, PNG": (cut(plain("RGB", 6600, "PNG"), 0.95), "truncated"),
    "cut, PPM": (cut(plain("RGB", 5000, "PPM"), 0.95), "truncated"),
    "cut, BMP": (cut(plain("RGB", 5000, "BMP"), 0.95), "truncated"),
    "cut, TIFF": (cut(plain("RGB", 5000, "TIFF"), 0.95), "truncated"),
    "cut, JPEG 2000": (cut(plain("RGB", 2800, "JPEG2000"), 0.5), "damaged"),
    "cut, WebP": (cut(plain("RGBA", 3600, "WEBP", lossless=True), 0.5), "damaged"),
    "cut, GIF": (cut(plain("L", 6000, "GIF"), 0.95), "truncated"),
    "cut, AVIF": (cut(plain("RGB", 3000, "AVIF"), 0.5), "not_an_image"),
    "levels up to 1000": (lambda: b"P5 5000 5000 1000\n" + bytes(50_000_000), "picture"),
    "levels up to 254": (lambda: b"P6 5000 5000 254\n" + bytes(75_000_000), "picture"),
    "large profile": (lambda: with_profile(60_000_000), "damaged"),
    "comment": (lambda: with_comment(16_000_000), "picture"),
    "strips": (lambda: tiff(GREY, tags={273: (4, NUMBERS, PLACE)}, more=bytes(4 * NUMBERS)), "damaged"),
    "numbers in a tag": (lambda: tiff(GREY, tags={258: (3, NUMBERS, PLACE)}, more=bytes(2 * NUMBERS)), "damaged"),
}

RECORD = struct.pack("<II", 0xCED7230A, 28) + struct.pack("<IfQQ", 0, 1, 0, 0) + b"data"
PARTS = struct.pack("<II", 0xCED7230A, 1 << 29 | 24) + bytes(24) + struct.pack("<II", 0xCED7230A, 2 << 29) * 2_000_000
TABLES: dict[str, tuple[Any, dict[str, Any], dict[str, bytes]]] = {  # a data set's adapter, its options and its files
    "a line": (csv, {}, {"t.csv": b"a" * 150_000_000}),
    "a line that is wide": (csv, {}, {"t.csv": b"image\n" + "\N{GRINNING FACE}".encode() * 30_000_000}),
    "a row": (csv, {}, {"t.csv": b'image,label\n"' + b'","\n' * 30_000_000}),
    "columns": (csv, {}, {"t.csv": b"x," * 490_000 + b"y\n"}),
    "a line of pixels": (fer2013, {"file": "t.csv"}, {"t.csv": b'emotion,pixels,Usage\n0,"' + b"7 " * 60_000_000}),
    "parts of a record": (recordio, {}, {"t.rec": PARTS}),
    "a line of an index": (recordio, {}, {"t.rec": RECORD, "t.idx": b"9" * 150_000_000}),
    "lines of an index": (recordio, {}, {"t.rec": RECORD, "t.idx": b"1\t1\n" * 20_000_000}),
}


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Callable[..., run.Result]:
    """Reads once what was written once in a child process, after one reading that is not measured."""

    def once(write: Callable[[Path], object], read: Callable[[Path], object]) -> run.Result:
        monkeypatch.setitem(READERS, "one", Reader(write, ("*",), read))
        [result] = run.count("one", 1, method="fork").results
        return result

    return once


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name: str, measure: Callable[..., run.Result]) -> None:
    make, expected = PICTURES[name]
    result = measure(
        lambda folder: (folder / "picture").write_bytes(make()),
        lambda folder: decode_picture(read_file(folder / "picture")),
    )
    assert (result.outcome, result.said) == (("accepted", "") if expected == "picture" else ("refused", expected))
    assert result.memory <= (run.ACCEPTED if expected == "picture" else run.REFUSED)


@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str, measure: Callable[..., run.Result]) -> None:
    adapter, options, files = TABLES[name]

    def write(folder: Path) -> None:
        for file, data in files.items():
            (folder / file).write_bytes(data)

    result = measure(write, lambda folder: list(adapter.samples(folder, adapter.Options(**options))))
    assert result.outcome == "refused", result
    assert result.memory <= run.REFUSED


def test_a_file_too_large_for_a_picture_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as stream:
        stream.truncate(LARGEST_FILE + 1)
    with pytest.raises(TooLargeError, match="80,000,001 bytes, at most 80,000,000 are read"):
        read_file(path)
    assert len(read_file(path, offset=1)) == LARGEST_FILE
    assert len(read_file(path, offset=LARGEST_FILE, length=9)) == 1


def test_more_pixels_may_be_allowed_with_the_memory_that_they_take() -> None:
    data = plain("L", 7200, "PNG")()
    with pytest.raises(Rejection, match="too_many_pixels"):
        decode_picture(data)
    assert decode_picture(data, PictureSettings(max_pixels=52_000_000)).shape == (7200, 7200, 3)


def test_a_name_that_no_file_can_have_is_missing_and_not_fatal(tmp_path: Path) -> None:
    plain_file = plain("RGB", 20, "PNG")()
    (tmp_path / "a.png").write_bytes(plain_file)
    (tmp_path / "t.csv").write_bytes(b"image,label\na.png,x\nb\0.png,x\nc\0/b.png,x\n" + b"d" * 5000 + b".png,x\n")
    options = csv.Options(missing="reject", encoding="utf-8")
    found = list(csv.samples(tmp_path, options))
    assert len(found) == 4
    assert csv.read(found[0], options) == plain_file
    for sample in found[1:]:
        with pytest.raises(DataError, match="cannot be read"):
            csv.read(sample, options)
    with pytest.raises(DataError, match="3 of 4 pictures that"):
        list(csv.samples(tmp_path, csv.Options(encoding="utf-8")))
