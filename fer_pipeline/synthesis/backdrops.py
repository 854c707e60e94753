"""Backgrounds: a kind, a colour and a random generator in, a filled canvas out."""

import numpy as np
from jaxtyping import Float

from fer_pipeline.synthesis.canvas import Canvas, noise

BACKDROPS = ("studio", "blobs", "stripes", "room")


def paint_backdrop(canvas: Canvas, kind: str, colour: Float[np.ndarray, " 3"], rng: np.random.Generator) -> None:
    """Fills the whole canvas with a backdrop of a kind in `BACKDROPS`."""
    height, width = canvas.pixels.shape[:2]
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    centre = rng.uniform(0.25, 0.75)
    if kind == "studio":
        glow = 1.08 - 0.5 * ((across - centre) ** 2 + (down - 0.4) ** 2)
        canvas.pixels[:] = colour * glow[..., None]
    elif kind == "blobs":
        cells = rng.uniform(8, 40)
        tint = rng.normal(0, 0.07, 3)
        canvas.pixels[:] = colour + rng.uniform(0.08, 0.18) * noise(rng, (height, width), cells, cells)[..., None]
        canvas.pixels += tint.astype(np.float32) * noise(rng, (height, width), cells, cells)[..., None]
    elif kind == "stripes":
        angle, pitch = rng.uniform(0, np.pi), rng.uniform(4, 14)
        wave = np.sin((across * np.cos(angle) + down * np.sin(angle)) * 2 * np.pi * pitch)
        second = np.clip(colour + rng.normal(0, 0.18, 3), 0, 1)
        share = (0.5 + 0.5 * np.clip(3 * wave, -1, 1))[..., None]
        canvas.pixels[:] = colour * share + second * (1 - share)
    else:
        canvas.pixels[:] = colour * (1 - 0.3 * down[..., None])
        for _ in range(int(rng.integers(3, 8))):
            left, top = rng.integers(-20, width - 8), rng.integers(-20, height - 8)
            size = rng.integers(10, width // 2, 2)
            patch = np.clip(colour + rng.normal(0, 0.2, 3), 0, 1)
            canvas.pixels[max(top, 0) : max(top + size[1], 0), max(left, 0) : max(left + size[0], 0)] = patch
    np.clip(canvas.pixels, 0, 1, out=canvas.pixels)
