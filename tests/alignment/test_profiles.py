"""Colour profiles made by hand: what is decoded is what the profile's own arithmetic says in sRGB."""

import io
import struct
import zlib
from itertools import product
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from fer_pipeline.alignment.pictures import PictureSettings, Rejection, decode_picture

D50 = (0.9642, 1.0, 0.8249)
SRGB_D50 = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
P3_D50 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
GAMMA = 563 / 256  # as a profile stores 2.2


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def profile(space: bytes, kind: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    """An ICC profile of version 2 (ICC.1:2001-04): header, table of tags, tags."""
    place, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", place + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    header = struct.pack(
        ">I4sI4s4s4s12s4s", place + len(body), bytes(4), 0x02100000, kind, space, connection, bytes(12), b"acsp"
    )
    header += bytes(28) + xyz(D50)[8:]
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def xyz(values: Any) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def matrix_profile(primaries: np.ndarray) -> bytes:
    tags = {b"wtpt": xyz(D50)}
    for name, column in zip("rgb", primaries.T, strict=True):
        tags |= {name.encode() + b"XYZ": xyz(column), name.encode() + b"TRC": curve(2.2)}
    return profile(b"RGB ", b"mntr", tags)


def grey_profile(gamma: float) -> bytes:
    return profile(b"GRAY", b"mntr", {b"wtpt": xyz(D50), b"kTRC": curve(gamma)})


def ink_profile() -> bytes:
    """Black ink takes all light, cyan half of the lightness, magenta a quarter; yellow none: L* at the 16 corners."""
    corners = [round(255 * (1 - k) * (1 - c / 2) * (1 - m / 4)) for c, m, _, k in product((0, 1), repeat=4)]
    identity = bytes(range(256))
    table = b"".join(bytes([lightness, 128, 128]) for lightness in corners)
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + 4 * identity + table + 3 * identity
    return profile(b"CMYK", b"prtr", {b"wtpt": xyz(D50), b"A2B0": lut}, b"Lab ")


def to_srgb(linear: np.ndarray) -> np.ndarray:
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("alpha", [False, True])
def test_wide_colours_become_srgb(format: str, alpha: bool) -> None:
    pixels = colours()
    picture = Image.fromarray(np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]) if alpha else pixels)
    data = encoded(
        picture, format, icc_profile=matrix_profile(P3_D50), **({"lossless": True} if format == "WEBP" else {})
    )
    expected = to_srgb((pixels / 255) ** GAMMA @ (np.linalg.inv(SRGB_D50) @ P3_D50).T)
    found = decode_picture(data)
    assert np.abs(found - expected).max() <= 2
    assert np.abs(found.astype(int) - pixels).max() > 30


def test_wide_colours_of_a_jpeg_become_srgb_and_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (40, 24), (60, 160, 80)), "JPEG", icc_profile=matrix_profile(P3_D50), exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(data)))[0, 0]
    expected = to_srgb((stored / 255) ** GAMMA @ (np.linalg.inv(SRGB_D50) @ P3_D50).T)
    found = decode_picture(data)
    assert found.shape == (40, 24, 3)
    assert np.abs(found - expected).max() <= 2


def test_a_profile_of_srgb_changes_no_byte() -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(
        decode_picture(encoded(Image.fromarray(colours()), "PNG", icc_profile=own)), colours()
    )
    plain, grey = Image.fromarray(colours()), Image.fromarray(colours()[..., 0])
    for picture in (plain, grey):
        np.testing.assert_array_equal(
            decode_picture(encoded(picture, "JPEG", icc_profile=own)), decode_picture(encoded(picture, "JPEG"))
        )


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.6])
def test_grey_follows_its_profile(mode: str, gamma: float) -> None:
    levels = np.arange(16 * 16).reshape(16, 16).astype(np.uint8)
    picture = Image.fromarray(levels.astype(np.uint16) * 257 if mode == "I;16" else levels)
    picture = picture.convert("LA") if mode == "LA" else picture
    found = decode_picture(encoded(picture, "PNG", icc_profile=grey_profile(gamma)))
    expected = to_srgb((levels / 255) ** (round(gamma * 256) / 256))
    assert np.abs(found - expected[..., None]).max() <= 2


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_inks_follow_their_profile(format: str) -> None:
    for inks in [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (255, 255, 0, 0), (0, 0, 0, 255)]:
        c, m, _, k = (ink / 255 for ink in inks)
        lightness = 100 * round(255 * (1 - k) * (1 - c / 2) * (1 - m / 4)) / 255
        luminance = ((lightness + 16) / 116) ** 3 if lightness > 8 else lightness / 903.3
        found = decode_picture(encoded(Image.new("CMYK", (32, 32), inks), format, icc_profile=ink_profile()))
        assert np.abs(found - to_srgb(np.array(luminance))).max() <= 3, inks


def test_lab_becomes_srgb() -> None:
    picture = Image.new("LAB", (32, 32), (128, 128, 128))  # 128 is no colour
    expected = to_srgb(np.array(((12800 / 255 + 16) / 116) ** 3))
    assert np.abs(decode_picture(encoded(picture, "TIFF")) - expected).max() <= 2


def test_a_profile_for_other_colours_is_ignored() -> None:
    for other in (grey_profile(1.0), ink_profile()):
        data = encoded(Image.fromarray(colours()), "PNG", icc_profile=other)
        np.testing.assert_array_equal(decode_picture(data), colours())


def test_a_grey_picture_may_have_a_profile_of_colours() -> None:
    levels = np.arange(16 * 16).reshape(16, 16).astype(np.uint8)
    found = decode_picture(encoded(Image.fromarray(levels), "PNG", icc_profile=matrix_profile(P3_D50)))
    assert np.abs(found - to_srgb((levels / 255) ** GAMMA)[..., None]).max() <= 2


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("damage", [b"no profile", matrix_profile(P3_D50)[:100], matrix_profile(P3_D50)[:140]])
def test_a_damaged_profile_is_counted_unless_kept(format: str, damage: bytes) -> None:
    data = encoded(Image.fromarray(colours()), format, icc_profile=damage)
    with pytest.raises(Rejection, match="damaged_profile"):
        decode_picture(data)
    kept = decode_picture(data, PictureSettings(damaged="keep"))
    np.testing.assert_array_equal(kept, decode_picture(encoded(Image.fromarray(colours()), format)))


def test_a_profile_whose_chunk_is_damaged_is_counted() -> None:
    data = encoded(Image.fromarray(colours()), "PNG", icc_profile=matrix_profile(P3_D50))
    place = data.index(b"iCCP")
    length = int.from_bytes(data[place - 4 : place], "big")
    chunk = b"iCCP" + data[place + 4 : place + 20] + bytes(length - 16)
    checked = chunk + struct.pack(">I", zlib.crc32(chunk))
    with pytest.raises(Rejection, match="damaged_profile"):
        decode_picture(data[:place] + checked + data[place + 8 + length :])
