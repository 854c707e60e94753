"""The camera: a clean picture and its exposure in, the JPEG that a photographer would have left out.

Order: low resolution and blur, contrast and gamma, colour cast or grey, vignette, press screen, grain, JPEG.
"""

import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter

from fer_pipeline.synthesis.canvas import smoothstep


@dataclass(frozen=True, slots=True)
class Exposure:
    """How one picture was taken."""

    shrink: float  # 1 full resolution, 2 half of it scaled up again
    blur: float  # pixels
    contrast: float
    brightness: float
    gamma: float
    cast: Float[np.ndarray, " 3"]
    grey: float  # share of colour that is lost
    vignette: float
    screen: float  # strength of a halftone screen
    grain: float
    quality: int


def develop(
    pixels: Float[np.ndarray, "h w 3"], exposure: Exposure, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture after optics, film and print."""
    height, width = pixels.shape[:2]
    image = Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))
    if exposure.shrink > 1.05:
        small = (max(8, round(width / exposure.shrink)), max(8, round(height / exposure.shrink)))
        image = image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BICUBIC)
    if exposure.blur > 0.15:
        image = image.filter(ImageFilter.GaussianBlur(exposure.blur))
    seen = np.asarray(image, np.float32) * np.float32(1 / 255)
    seen = (seen ** np.float32(exposure.gamma) - 0.5) * np.float32(exposure.contrast) + np.float32(
        0.5 + exposure.brightness
    )
    seen *= exposure.cast.astype(np.float32)
    if exposure.grey > 0:
        luma = seen @ np.array([0.299, 0.587, 0.114], np.float32)
        seen += np.float32(exposure.grey) * (luma[..., None] - seen)
    edge, dots = _masks(height, width)
    if exposure.vignette > 0:
        seen *= 1 - np.float32(exposure.vignette) * edge
    if exposure.screen > 0:
        seen += np.float32(0.16 * exposure.screen) * dots
    if exposure.grain > 0:
        film = rng.standard_normal((height, width), np.float32)[..., None]
        if exposure.grey < 0.9:
            film = 0.75 * film + 0.4 * rng.standard_normal((height, width, 3), np.float32)
        seen += np.float32(exposure.grain) * film
    return (np.clip(seen, 0, 1) * 255 + 0.5).astype(np.uint8)


def encode_jpeg(image: UInt8[np.ndarray, "h w 3"], quality: int) -> bytes:
    """The picture as JPEG bytes."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


@cache
def _masks(height: int, width: int) -> tuple[Float[np.ndarray, "h w 1"], Float[np.ndarray, "h w 1"]]:
    """How far a pixel lies in the dark corners, and the dots of a halftone screen."""
    down, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    dots = np.sin((across + down) * (height * 0.55)) * np.sin((across - down) * (height * 0.55))
    return smoothstep(0.5, 1.5, np.hypot(down, across))[..., None], dots[..., None].astype(np.float32)
