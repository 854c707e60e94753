"""Paint with soft edges: turn outlines in pixels into coverage masks and blend colours through them.

A mask is drawn by Pillow at four times the resolution inside a small window and averaged down, which costs a few dozen
microseconds; only windows are ever touched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFilter

_SUPERSAMPLING = 4

Mask = Float[np.ndarray, "h w"]
Points = Float[np.ndarray, "n 2"]
Colour = Float[np.ndarray, "..."] | float  # one, or one for each pixel
Line = tuple[Float[np.ndarray, "_ 2"], float, float]  # points, thickness in pixels, strength

_ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of whole pixels: [left, right) x [top, bottom)."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

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
        """Returns the smallest window around points, with a margin in pixels, inside the picture."""
        height, width = self.pixels.shape[:2]
        ends = *np.floor(points.min(0) - margin).tolist(), *np.ceil(points.max(0) + margin).tolist()
        # For one number, this costs a twentieth of numpy's clip.
        return Window(*(int(min(max(end, 0), size)) for end, size in zip(ends, 2 * (width, height), strict=True)))

    def blend(self, window: Window, mask: Mask, colour: Colour) -> None:
        """Moves the pixels of a window towards a colour by the mask."""
        part = self.pixels[window.slices]
        part += mask[..., None] * (np.asarray(colour, np.float32) - part)

    def shade(self, window: Window, mask: Mask, factor: Colour) -> None:
        """Multiplies the pixels of a window by a factor where the mask is one."""
        self.pixels[window.slices] *= 1 + mask[..., None] * (np.asarray(factor, np.float32) - 1)

    def fill(self, points: Points, colour: Colour, *, opacity: float = 1.0, blur: float = 0.0) -> None:
        """Paints a polygon in one colour."""
        window = self.window(points, 2 + 2 * blur)
        self.blend(window, polygon(window, points, blur=blur) * np.float32(opacity), colour)

    def line(self, points: Points, thick: float, colour: Colour, *, opacity: float = 1.0, blur: float = 0.0) -> None:
        """Paints an open line of a thickness in pixels."""
        window = self.window(points, 2 + thick + 2 * blur)
        self.blend(window, stroke(window, points, thick, blur=blur) * np.float32(opacity), colour)


def polygon(window: Window, points: Points, *, blur: float = 0.0) -> Mask:
    """Returns the coverage of a polygon in a window; `blur` is in pixels."""
    return _rasterize(window, blur, lambda draw: draw.polygon(_supersampled(points, window), fill=255))


def stroke(window: Window, points: Points, thick: float, *, blur: float = 0.0) -> Mask:
    """Returns the coverage of an open line in a window; lines too thin to draw become fainter instead."""
    width, strength = _line_width(thick)
    place = _supersampled(points, window)
    mask = _rasterize(window, blur, lambda draw: draw.line(place, fill=255, width=width, joint="curve"))
    return mask * np.float32(strength)


def strokes(window: Window, lines: Sequence[Line], *, blur: float = 0.0) -> Mask:
    """Returns the coverage of many lines, later ones over earlier ones, in one pass."""

    def paint(draw: ImageDraw.ImageDraw) -> None:
        for points, thick, strength in lines:
            width, faintness = _line_width(thick)
            draw.line(_supersampled(points, window), fill=round(255 * strength * faintness), width=width)

    return _rasterize(window, blur, paint)


def ellipse(centre: Float[np.ndarray, " 2"], rx: float, ry: float | None = None, *, angle: float = 0.0) -> Points:
    """Returns the outline of a circle, or of an ellipse with the radii `rx` and `ry` turned by `angle` radians."""
    outline = np.column_stack([rx * np.cos(_ANGLES), (rx if ry is None else ry) * np.sin(_ANGLES)])
    return outline @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + centre


def noise(rng: np.random.Generator, shape: tuple[int, ...], cell_y: float, cell_x: float) -> Mask:
    """Returns smooth noise about 0 with spread 1, whose grains are about `cell_y` by `cell_x` pixels."""
    height, width = shape
    if 0 in shape:
        return np.zeros(shape, np.float32)
    coarse = rng.standard_normal((max(2, round(height / cell_y) + 1), max(2, round(width / cell_x) + 1)))
    image = Image.fromarray(coarse.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def smoothstep(low: float, high: float, x: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """Returns 0 below `low`, 1 above `high` (or the reverse when low > high), smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _line_width(thick: float) -> tuple[int, float]:
    """A thickness in whole pixels of the supersampled window, and the strength that makes up for rounding up to one."""
    width = max(1, round(thick * _SUPERSAMPLING))
    return width, min(1.0, thick * _SUPERSAMPLING / width)


def _supersampled(points: Points, window: Window) -> list[float]:
    """Coordinates x, y, x, y … of points on the finer grid of a window."""
    return ((points - np.array([window.left, window.top])) * _SUPERSAMPLING - 0.5).ravel().tolist()


def _rasterize(window: Window, blur: float, paint: Callable[[ImageDraw.ImageDraw], None]) -> Mask:
    if window.empty:
        return np.zeros(window.shape, np.float32)
    image = Image.new("L", (window.shape[1] * _SUPERSAMPLING, window.shape[0] * _SUPERSAMPLING))
    paint(ImageDraw.Draw(image))
    image = image.reduce(_SUPERSAMPLING)
    if blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    return np.asarray(image) * np.float32(1 / 255)
