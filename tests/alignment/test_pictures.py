"""Every kind of bytes to the picture that a person would see, or to its reason."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PpmImagePlugin
from torchvision.io import ImageReadMode, decode_image

from fer_pipeline.alignment import pictures
from fer_pipeline.alignment.pictures import PictureSettings, Rejection, decode_picture


@pytest.fixture(autouse=True, scope="module")
def many_strips() -> Iterator[None]:
    """Converts these small pictures in several strips, as large ones are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "PIXELS_PER_STRIP", 200)
        yield


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


@pytest.mark.parametrize("maximum", [1, 3, 100, 254, 256, 1000, 40_000])
@pytest.mark.parametrize("kind", [5, 6])
def test_netpbm_of_any_maximum_equals_pillows_own(kind: int, maximum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose decoder in Python takes half a microsecond for each level."""
    levels = np.random.default_rng(maximum).integers(0, maximum + 1, (40, 60, 3 if kind == 6 else 1))
    pixels = levels.astype(">u2" if maximum > 255 else np.uint8).tobytes()
    data = b"P%d 60 40 %d\n" % (kind, maximum) + pixels
    ours = decode_picture(data)
    assert reason(data[:-1]) == "truncated"
    monkeypatch.setitem(Image.DECODERS, "ppm", PpmImagePlugin.PpmDecoder)
    np.testing.assert_array_equal(ours, decode_picture(data))


@pytest.mark.parametrize("kept", [0, 1, 50, 90])
def test_what_is_cut_short_is_truncated_before_it_is_decoded(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(gradient()), "PNG")
    start = data.index(b"IDAT") + 4
    jpeg = encoded(Image.fromarray(gradient()), "JPEG")
    monkeypatch.setattr(pictures, "estimate_bytes", None)  # which is asked next
    assert reason(data[: start + kept]) == "truncated"
    assert reason(jpeg[: jpeg.index(b"\xff\xda") + 20 + kept]) == "truncated"


@pytest.mark.parametrize(
    "data",
    [
        b"P3 16 16 255\n" + b"#\n" * 2000 + b"0 " * 768,
        b"P5\n#" + bytes(20_000) + b"\n16 16 255\n" + bytes(256),
        b"P6 16 16 255\n" + b"#" * 5,
    ],
)
def test_netpbm_that_takes_long_to_read_is_refused(data: bytes) -> None:
    assert reason(data) in ("damaged", "truncated", "not_an_image")


def test_more_strips_than_a_picture_has_are_refused() -> None:
    """Pillow decodes each of them, wherever it lies."""
    for count, expected in ((16, (16, 16, 3)), (17, "damaged")):
        offsets = struct.pack(f"<{count}I", *[8 + 4 * count] * count)
        tags = [(256, 16), (257, 16), (258, 8), (259, 1), (262, 1), (277, 1), (278, 1)]
        entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags]
        entries.insert(5, struct.pack("<HHII", 273, 4, count, 8))
        body = offsets + bytes(16)
        data = b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(entries)) + b"".join(entries)
        data += bytes(4)
        found = decode_picture(data).shape if count == 16 else reason(data)
        assert found == expected


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_equal_pillows_own(mode: str) -> None:
    data = encoded(Image.fromarray(gradient()).convert(mode), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_picture(data), expected)
    assert np.abs(decode_picture(data).astype(int) - expected).max() == 0


def test_cmyk_is_not_inverted() -> None:
    data = encoded(Image.new("CMYK", (32, 32), (0, 0, 0, 0)), "JPEG")
    assert decode_picture(data).min() > 250


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores: its row 0 and column 0 show what EXIF's table says of this orientation."""
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: upright.swapaxes(0, 1)[::-1],
        7: upright.swapaxes(0, 1)[::-1, ::-1],
        8: upright.swapaxes(0, 1)[:, ::-1],
    }[orientation]


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
    """Four quarters of known grey, stored as the camera would, come back upright. Truth: the EXIF standard's table."""
    upright = np.kron(np.array([[40, 100], [160, 220]], np.uint8), np.ones((32, 48), np.uint8))
    picture = Image.fromarray(np.ascontiguousarray(stored(upright, orientation)))
    found = decode_picture(encoded(picture, format, exif=oriented(orientation)))
    assert found.shape == (*upright.shape, 3)
    assert np.abs(found[..., 0].astype(int) - upright)[4:28, 4:44].max() < 8
    assert np.abs(found[..., 0].astype(int) - upright)[36:60, 52:92].max() < 8
    assert np.abs(found[..., 0].astype(int) - upright)[4:28, 52:92].max() < 8


def upright_picture(mode: str, seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels of a mode, and the RGB that a person sees of them on white."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, {"RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2}.get(mode, 1)), np.uint8)
    seen = pixels.astype(float)
    if mode in ("RGBA", "LA"):
        pixels[..., -1] = 255 * (pixels[..., -1] > 127)
        seen = np.where(pixels[..., -1:] > 0, pixels[..., :-1].astype(float), 255)
    elif mode == "CMYK":
        pixels[..., 3] = 0
        seen = 255 - pixels[..., :3].astype(float)
    elif mode == "1":
        pixels = pixels > 127
        seen = 255.0 * pixels
    elif mode == "I;16":
        pixels = pixels.astype(np.uint16) * 257
    return pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, np.broadcast_to(seen, (height, width, 3))


LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True, "exact": True},
    "TIFF": {},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "TIFF deflate": {"compression": "tiff_adobe_deflate"},
}


@settings(max_examples=150, deadline=None)
@given(
    orientation=st.integers(1, 8),
    kind=st.sampled_from([*LOSSLESS]),
    mode=st.sampled_from(["1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16", "P"]),
    height=st.integers(16, 24),
    width=st.integers(16, 24),
    seed=st.integers(0, 99),
)
def test_every_mode_in_every_orientation(
    orientation: int, kind: str, mode: str, height: int, width: int, seed: int
) -> None:
    """The pixels themselves, turned by hand, are the truth."""
    format = kind.split()[0]
    if (mode == "CMYK" and format != "TIFF") or (mode in ("1", "I;16", "P") and format == "WEBP"):
        return  # not to be written so
    pixels, seen = upright_picture(mode, seed, height, width)
    turned = np.ascontiguousarray(stored(pixels, orientation))
    picture = Image.fromarray(turned, "CMYK") if mode == "CMYK" else Image.fromarray(turned)
    if mode == "P":
        palette = np.random.default_rng(seed).integers(0, 256, (256, 3), np.uint8)
        picture.putpalette(palette.tobytes())
        seen = palette[pixels]
    found = decode_picture(encoded(picture, format, exif=oriented(orientation), **LOSSLESS[kind]))
    np.testing.assert_array_equal(found, seen)


@pytest.mark.filterwarnings("ignore:The image decoding")  # which newer versions leave to another package
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_pixels_are_those_of_torchvisions_decoder(format: str, mode: str, orientation: int) -> None:
    data = encoded(Image.fromarray(gradient()).convert(mode), format, exif=oriented(orientation))
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    expected = decode_image(raw, ImageReadMode.RGB, apply_exif_orientation=True).permute(1, 2, 0).numpy()
    assert np.abs(decode_picture(data).astype(int) - expected).max() <= 1


def test_an_orientation_behind_the_pixels_of_a_png_is_applied() -> None:
    data = encoded(Image.fromarray(gradient()), "PNG", exif=oriented(6))
    start = data.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
    late = data[:start] + data[stop:-12] + data[start:stop] + data[-12:]
    np.testing.assert_array_equal(decode_picture(late), np.rot90(gradient(), -1))


def test_damaged_exif_does_not_reject() -> None:
    data = encoded(Image.fromarray(gradient()), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert decode_picture(data).shape == (40, 60, 3)


def tiff(pixels: np.ndarray, **tags: int) -> bytes:
    """A TIFF of one strip, as Pillow cannot write it; tags by the standard's name."""
    names = {"bits": 258, "photometric": 262, "samples": 277, "most": 281, "extra": 338, "format": 339}
    height, width = pixels.shape[:2]
    data = pixels.tobytes() + bytes(pixels.nbytes % 2)
    samples = tags.setdefault("samples", 1)
    bits = tags.pop("bits", 8 * pixels.itemsize)
    width = width * 2 // 3 if bits == 12 else width
    fields = {256: width, 257: height, 259: 1, 273: 8, 278: height, 279: pixels.nbytes}
    fields |= {names[name]: value for name, value in ({"photometric": 1} | tags).items()}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items()]
    entries.append(struct.pack("<HHIHH", 258, 3, samples, bits, bits))
    entries.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


RAMP = np.linspace(0, 1, 40 * 60).reshape(40, 60)


def assert_ramp(data: bytes, scale: float = 255, start: float = 0) -> None:
    found = decode_picture(data)[..., 0]
    assert np.abs(found - (start + scale * RAMP)).max() <= 0.63, (found[0, 0], found[-1, -1])


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_deep_grey_is_scaled_by_its_bits(format: str, bits: int) -> None:
    levels = np.rint(RAMP * (2**bits - 1)).astype(np.uint16)
    assert_ramp(encoded(Image.fromarray(levels), format))


def test_deep_grey_whose_range_is_stated_may_be_dark() -> None:
    levels = np.rint(RAMP * 4000).astype(np.uint16)
    assert_ramp(tiff(levels, most=65535), 255 * 4000 / 65535)
    assert_ramp(tiff(levels, most=4000), 255 * 4000 / 4095)
    assert_ramp(b"P5 60 40 65535\n" + levels.astype(">u2").tobytes(), 255 * 4000 / 65535)
    assert_ramp(b"P5 60 40 4000\n" + levels.astype(">u2").tobytes())
    packed = np.rint(RAMP * 1000).astype(np.uint16).reshape(40, 30, 2)
    first, second = packed[..., 0], packed[..., 1]
    twelve = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8)
    assert_ramp(tiff(twelve.reshape(40, 90), bits=12), 255 * 1000 / 4095)


def test_other_integers_are_scaled_by_their_range() -> None:
    assert_ramp(tiff(np.rint(RAMP * (2**32 - 1)).astype(np.uint32)))
    assert_ramp(tiff(np.rint(RAMP * 65535).astype(np.uint32)))
    assert_ramp(tiff(np.rint(RAMP * (2**31 - 1)).astype(np.int32), format=2))
    assert_ramp(tiff(np.rint(RAMP * 32767).astype(np.int16), format=2))
    assert_ramp(tiff(np.rint(RAMP * 65535).astype(np.uint16), photometric=0), -255, 255)
    assert reason(tiff(np.full((40, 60), -3, np.int16), format=2)) == "damaged"


def test_floats_are_scaled_by_their_range() -> None:
    for most in (1, 255, 65535):
        assert_ramp(tiff((RAMP * most).astype(np.float32), format=3))
    levels = RAMP.astype(np.float32)
    levels[3, 3] = np.nan
    assert reason(tiff(levels, format=3)) == "damaged"


def test_premultiplied_grey_is_laid_over_the_background() -> None:
    pixels = np.stack([np.rint(RAMP * 128), np.full(RAMP.shape, 128)], axis=-1).astype(np.uint8)
    found = decode_picture(tiff(pixels, samples=2, extra=1))[..., 0]
    assert np.abs(found - (127 + 128 * RAMP)).max() <= 1.5


def test_transparent_levels_of_deep_grey_show_the_background() -> None:
    levels = np.full((20, 20), 40_000, np.uint16)
    levels[:10] = 300
    found = decode_picture(encoded(Image.fromarray(levels), "PNG", transparency=300))[..., 0]
    assert [found[0, 0], found[19, 0]] == [255, 156]


def test_inverted_ycck_of_adobe() -> None:
    """A CMYK JPEG whose Adobe marker is made to say that it holds YCCK. Truth: the JFIF matrix, all inks inverted."""
    stored = np.array([90, 140, 120, 200])
    inks = Image.new("CMYK", (32, 32), tuple(int(255 - value) for value in stored))
    data = encoded(inks, "JPEG", quality=100)
    place = data.index(b"Adobe") + 11
    assert data[place] == 0, "the marker says CMYK"
    y, cb, cr = stored[0], stored[1] - 128, stored[2] - 128
    colours = np.array([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb])
    expected = (255 - colours) * stored[3] / 255
    found = decode_picture(data[:place] + b"\2" + data[place + 1 :])
    assert np.abs(found - expected).max() <= 3


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


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_counts(format: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert decode_picture(data)[0, 0].tolist() == [255, 0, 0]


def test_the_still_picture_of_an_apng_counts() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "lime")]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
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


GIF = encoded(Image.fromarray(gradient()), "GIF")
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
PROFILED = encoded(Image.fromarray(gradient()), "JPEG", icc_profile=PROFILE)
TIFFS = [
    encoded(Image.fromarray(gradient()[..., 0].astype(np.uint16) * 9), "TIFF", exif=oriented(6), compression=how)
    for how in (None, "tiff_lzw")
]


@pytest.mark.parametrize(
    "damage", [lambda data, place: data[:place], lambda data, place: data[:place] + b"\x99" + data[place + 1 :]]
)
@settings(max_examples=60, deadline=None)
@given(
    place=st.integers(min_value=0, max_value=2000),
    kind=st.sampled_from([JPEG, PNG, PROFILED, GIF, *TIFFS]),
)
def test_no_damage_raises_anything_else_or_warns(
    damage: Callable[[bytes, int], bytes], place: int, kind: bytes
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert outcome(damage(kind, place)) in {"picture", *REASONS}


REASONS = ("empty", "not_an_image", "truncated", "damaged", "too_small", "too_many_pixels", "damaged_profile")


def outcome(data: bytes) -> str:
    try:
        decode_picture(data)
    except Rejection as rejection:
        return rejection.reason
    return "picture"
