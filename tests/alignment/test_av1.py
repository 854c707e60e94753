"""The frames of an AVIF are as large as its decoder makes them."""

import io
import struct
from typing import Any

import pytest
from PIL import Image

from fer_pipeline.alignment.av1 import count_pixels
from fer_pipeline.alignment.pictures import Rejection, decode_picture


def avif(mode: str, size: tuple[int, int], **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise(size, 90).convert(mode).save(stream, "AVIF", **options)
    return stream.getvalue()


@pytest.mark.parametrize("size", [(16, 16), (257, 100), (1000, 31)])
@pytest.mark.parametrize("options", [{}, {"speed": 10}, {"subsampling": "4:4:4"}, {"tile_rows": 1}])
def test_a_picture_has_the_pixels_that_it_decodes_to(size: tuple[int, int], options: dict[str, Any]) -> None:
    assert count_pixels(avif("RGB", size, **options)) == size[0] * size[1]


def test_transparency_is_a_picture_of_its_own() -> None:
    picture = Image.effect_noise((60, 40), 90).convert("RGBA")
    picture.putalpha(Image.effect_noise((60, 40), 90))
    stream = io.BytesIO()
    picture.save(stream, "AVIF")
    assert count_pixels(stream.getvalue()) == 2 * 60 * 40


def test_an_animation_has_its_still_picture_once() -> None:
    assert count_pixels(avif("RGB", (60, 40), save_all=True, append_images=[Image.new("RGB", (60, 40))])) == 60 * 40


def test_a_small_box_around_a_large_frame_is_refused() -> None:
    data = bytearray(avif("L", (5000, 5000), quality=1, speed=10))
    struct.pack_into(">II", data, data.index(b"ispe") + 8, 64, 64)
    with pytest.raises(Rejection, match="too_many_pixels"):
        decode_picture(bytes(data))


@pytest.mark.parametrize(("override", "expected"), [(0, 16 * 16), (1, 2**32)])
def test_a_frame_that_states_its_own_size_counts_as_the_largest(override: int, expected: int) -> None:
    """Written bit by bit by the specification's tables, 5.5.1 and 5.9.2."""
    sequence = f"000 0 0  0 0 00000 {0:012b} 00000  1111 1111 {15:016b} {15:016b}  0  0 0 0  0 0 0 0 0  1 1  0 0 0"
    frame = f"0 00 1  0 0  {override} 0"
    data = bytearray(avif("RGB", (16, 16)))
    units = b"".join(
        bytes([kind << 3 | 2, len(body)]) + body
        for kind, bits in ((1, sequence), (6, frame))
        for bits in [bits.replace(" ", "")]
        for body in [int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")]
    )
    start = data.index(b"mdat") + 4
    length = len(data) - start
    data[start:] = units.ljust(length, b"\0")
    assert count_pixels(bytes(data)) == expected


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_damage_is_an_error_that_the_decoder_of_pictures_knows(share: float) -> None:
    data = avif("RGB", (100, 100))
    with pytest.raises((ValueError, LookupError, struct.error)):
        count_pixels(data[: int(270 * share)])
