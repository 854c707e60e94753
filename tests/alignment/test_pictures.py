"""Every kind of bytes to the picture that a person would see, or to its reason."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fer_pipeline.alignment.pictures import PictureSettings, Rejection, decode_picture


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def gradient(height: int = 40, width: int = 60) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 2], axis=-1).astype(np.uint8)


def reason(data: bytes, **changes: Any) -> str:
    with pytest.raises(Rejection) as caught:
        decode_picture(data, PictureSettings(**changes))
    return caught.value.reason


@pytest.mark.parametrize("format", ["PNG", "BMP", "PPM", "TIFF", "WEBP"])
def test_lossless_formats_keep_every_pixel(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    np.testing.assert_array_equal(decode_picture(encoded(Image.fromarray(gradient()), format, **options)), gradient())


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_equal_pillows_own(mode: str) -> None:
    data = encoded(Image.fromarray(gradient()).convert(mode), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_picture(data), expected)
    assert np.abs(decode_picture(data).astype(int) - expected).max() == 0


def test_cmyk_is_not_inverted() -> None:
    data = encoded(Image.new("CMYK", (32, 32), (0, 0, 0, 0)), "JPEG")
    assert decode_picture(data).min() > 250


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
    """Four quarters of known grey, stored as the camera would, come back upright. Truth: the EXIF standard's table."""
    upright = np.kron(np.array([[40, 100], [160, 220]], np.uint8), np.ones((32, 48), np.uint8))
    # What the stored row 0 and column 0 show, as the standard words it.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif)
    found = decode_picture(data)
    assert found.shape == (*upright.shape, 3)
    assert np.abs(found[..., 0].astype(int) - upright)[4:28, 4:44].max() < 8
    assert np.abs(found[..., 0].astype(int) - upright)[36:60, 52:92].max() < 8
    assert np.abs(found[..., 0].astype(int) - upright)[4:28, 52:92].max() < 8


def test_damaged_exif_does_not_reject() -> None:
    data = encoded(Image.fromarray(gradient()), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert decode_picture(data).shape == (40, 60, 3)


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    levels = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    found = decode_picture(encoded(Image.fromarray(levels), "PNG"))
    assert np.abs(found[..., 0].astype(float) - levels / 257).max() <= 0.51


def test_float_pictures_are_scaled_by_their_range() -> None:
    levels = np.linspace(0, 1, 40 * 60).reshape(40, 60).astype(np.float32)
    found = decode_picture(encoded(Image.fromarray(levels), "TIFF"))
    assert np.abs(found[..., 0].astype(float) - 255 * levels).max() <= 0.51
    levels[3, 3] = np.nan
    assert reason(encoded(Image.fromarray(levels), "TIFF")) == "damaged"


def test_palettes_keep_their_colours() -> None:
    indexed = Image.fromarray(np.kron([[0, 1], [2, 3]], np.ones((20, 20))).astype(np.uint8))
    indexed.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    found = decode_picture(encoded(indexed, "GIF"))
    assert found[[0, 0, 39, 39], [0, 39, 0, 39]].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]]


def test_transparency_shows_the_stated_background() -> None:
    image = Image.new("RGBA", (32, 32), (200, 100, 0, 0))
    image.paste((200, 100, 0, 255), (0, 0, 16, 32))
    image.paste((200, 100, 0, 51), (24, 0, 32, 32))
    found = decode_picture(encoded(image, "PNG"), PictureSettings(background=(10, 20, 30)))
    assert found[0, 0].tolist() == [200, 100, 0]
    assert found[0, 20].tolist() == [10, 20, 30]
    np.testing.assert_allclose(found[0, 28], np.array([200, 100, 0]) * 0.2 + np.array([10, 20, 30]) * 0.8, atol=1)
    indexed = Image.new("P", (32, 32), 0)
    indexed.putpalette([255, 0, 0, 0, 255, 0])
    found = decode_picture(encoded(indexed, "PNG", transparency=0))
    assert found[0, 0].tolist() == [255, 255, 255]


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_picture(data)[0, 0].tolist() == [255, 0, 0]


def png_header(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel that promises a size and holds nothing of it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


JPEG = encoded(Image.fromarray(gradient(200, 200)), "JPEG", quality=95)
PNG = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), "PNG")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"a picture, I promise", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n", "not_an_image"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[: len(PNG) // 2], "truncated"),
        (png_header(40_000, 40_000), "too_many_pixels"),
        (png_header(9_000, 9_000), "too_many_pixels"),
        (encoded(Image.new("RGB", (5, 5)), "PNG"), "too_small"),
        (encoded(Image.new("RGB", (4000, 8)), "PNG"), "too_small"),
    ],
)
def test_what_cannot_be_used_has_its_reason(data: bytes, expected: str) -> None:
    assert reason(data) == expected


def test_a_jpeg_that_must_be_guessed_is_damaged_unless_kept() -> None:
    holed = JPEG[: len(JPEG) // 2] + JPEG[len(JPEG) // 2 + 200 :]
    assert Image.open(io.BytesIO(holed)).convert("RGB").size == (200, 200), "Pillow alone sees nothing"
    assert reason(holed) == "damaged"
    assert decode_picture(holed, PictureSettings(damaged="keep")).shape == (200, 200, 3)


def test_bytes_between_the_markers_of_a_jpeg_are_no_damage() -> None:
    marker = JPEG.index(b"\xff\xdb")
    np.testing.assert_array_equal(decode_picture(JPEG[:marker] + b"\x00\x00\x00" + JPEG[marker:]), decode_picture(JPEG))


def test_limits_are_settings() -> None:
    assert decode_picture(encoded(Image.new("RGB", (5, 5)), "PNG"), PictureSettings(min_side=5)).shape == (5, 5, 3)
    assert reason(PNG, max_pixels=64 * 64 - 1) == "too_many_pixels"
    assert decode_picture(PNG, PictureSettings(max_pixels=64 * 64)).shape == (64, 64, 3)


@pytest.mark.parametrize(
    "damage", [lambda data, place: data[:place], lambda data, place: data[:place] + b"\x99" + data[place + 1 :]]
)
@settings(max_examples=60, deadline=None)
@given(
    place=st.integers(min_value=0, max_value=2000),
    kind=st.sampled_from([JPEG, PNG, encoded(Image.fromarray(gradient()), "GIF")]),
)
def test_no_damage_raises_anything_else_or_warns(
    damage: Callable[[bytes, int], bytes], place: int, kind: bytes
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert outcome(damage(kind, place)) in {"picture", *REASONS}


REASONS = ("empty", "not_an_image", "truncated", "damaged", "too_small", "too_many_pixels")


def outcome(data: bytes) -> str:
    try:
        decode_picture(data)
    except Rejection as rejection:
        return rejection.reason
    return "picture"
