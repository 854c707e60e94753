"""Painting with soft edges: outlines in pixels in, coverage masks out, and colours blended through them.

A mask is drawn by Pillow at four times the resolution inside a small window and averaged down, which costs a few dozen
microseconds; only windows are ever touched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFilter

_FINE = 4

Mask = Float[np.ndarray, "h w"]
Points = Float[np.ndarray, "n 2"]
Line = tuple[Float[np.ndarray, "_ 2"], float, float]  # points, thickness in pixels, strength


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of whole pixels: [left, right) x [top, bottom)."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def empty(self) -> bool:
        """Whether the window holds no pixel."""
        return self.right <= self.left or self.bottom <= self.top

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


class Canvas:
    """A picture in progress: `pixels` is float32 RGB between 0 and 1."""

    def __init__(self, width: int, height: int) -> None:
        self.pixels = np.zeros((height, width, 3), np.float32)

    def window(self, points: Points, margin: float = 2.0) -> Window:
        """The smallest window around points, with a margin in pixels, inside the picture."""
        height, width = self.pixels.shape[:2]
        left, top = np.floor(points.min(0) - margin).tolist()
        right, bottom = np.ceil(points.max(0) + margin).tolist()
        return Window(_within(left, width), _within(top, height), _within(right, width), _within(bottom, height))

    def blend(self, window: Window, mask: Mask, colour: Float[np.ndarray, "..."] | float) -> None:
        """Moves the pixels of a window towards a colour (one, or one for each pixel) by the mask."""
        if not window.empty:
            part = self.pixels[window.slices]
            part += mask[..., None] * (np.asarray(colour, np.float32) - part)

    def shade(self, window: Window, mask: Mask, factor: float | Float[np.ndarray, "..."]) -> None:
        """Multiplies the pixels of a window by a factor where the mask is one."""
        if not window.empty:
            self.pixels[window.slices] *= 1 + mask[..., None] * (np.asarray(factor, np.float32) - 1)

    def fill(
        self, points: Points, colour: Float[np.ndarray, "..."] | float, *, opacity: float = 1.0, soft: float = 0.0
    ) -> None:
        """Paints a polygon in one colour."""
        window = self.window(points, 2 + 2 * soft)
        self.blend(window, polygon(window, points, soft=soft) * np.float32(opacity), colour)

    def line(
        self,
        points: Points,
        thick: float,
        colour: Float[np.ndarray, "..."] | float,
        *,
        opacity: float = 1.0,
        soft: float = 0.0,
    ) -> None:
        """Paints an open line of a thickness in pixels."""
        window = self.window(points, 2 + thick + 2 * soft)
        self.blend(window, stroke(window, points, thick, soft=soft) * np.float32(opacity), colour)


def polygon(window: Window, points: Points, *, soft: float = 0.0) -> Mask:
    """Coverage of a polygon in a window; `soft` is a blur in pixels."""
    return _drawn(window, soft, lambda draw: draw.polygon(_placed(points, window), fill=255))


def stroke(window: Window, points: Points, thick: float, *, soft: float = 0.0) -> Mask:
    """Coverage of an open line in a window; lines thinner than the finest one become fainter instead."""
    fine = max(1, round(thick * _FINE))
    mask = _drawn(window, soft, lambda draw: draw.line(_placed(points, window), fill=255, width=fine, joint="curve"))
    return mask * np.float32(min(1.0, thick * _FINE / fine))


def strokes(window: Window, lines: Sequence[Line], *, soft: float = 0.0) -> Mask:
    """Coverage of many lines, later ones over earlier ones, in one pass."""
    return _drawn(window, soft, partial(_paint_strokes, lines=lines, window=window))


def disc(
    centre: Float[np.ndarray, " 2"], radius_x: float, radius_y: float | None = None, *, turn: float = 0.0
) -> Points:
    """The outline of an ellipse."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = np.stack([radius_x * np.cos(angle), (radius_x if radius_y is None else radius_y) * np.sin(angle)], 1)
    return ring @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + centre


def noise(rng: np.random.Generator, shape: tuple[int, ...], cell_y: float, cell_x: float) -> Mask:
    """Smooth noise about 0 with spread 1, whose grains are about `cell_y` by `cell_x` pixels."""
    height, width = shape
    coarse = rng.standard_normal((max(2, round(height / cell_y) + 1), max(2, round(width / cell_x) + 1)))
    image = Image.fromarray(coarse.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def smoothstep(low: float, high: float, x: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """0 below `low`, 1 above `high` (or the reverse when low > high), smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _within(place: float, size: int) -> int:
    return int(min(max(place, 0), size))  # a twentieth of what numpy's clip costs for one number


def _placed(points: Points, window: Window) -> list[tuple[float, float]]:
    """Points on the finer grid of a window."""
    return [tuple(point) for point in ((points - np.array([window.left, window.top])) * _FINE - 0.5).tolist()]


def _paint_strokes(draw: ImageDraw.ImageDraw, *, lines: Sequence[Line], window: Window) -> None:
    for points, thick, strength in lines:
        fine = max(1, round(thick * _FINE))
        shade = round(255 * strength * min(1.0, thick * _FINE / fine))
        draw.line(_placed(points, window), fill=shade, width=fine)


def _drawn(window: Window, soft: float, paint: Callable[[ImageDraw.ImageDraw], None]) -> Mask:
    width, height = window.right - window.left, window.bottom - window.top
    if window.empty:
        return np.zeros((max(height, 0), max(width, 0)), np.float32)
    image = Image.new("L", (width * _FINE, height * _FINE))
    paint(ImageDraw.Draw(image))
    image = image.reduce(_FINE)
    if soft > 0:
        image = image.filter(ImageFilter.GaussianBlur(soft))
    covered = np.frombuffer(image.tobytes(), np.uint8).reshape(height, width)
    return covered * np.float32(1 / 255)
