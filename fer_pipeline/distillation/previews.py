"""Distilled images as pictures: normalised images in, PNG files out (figure 4 of OS-FER, arXiv:2005.08551)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image

from fer_pipeline.core.files import replacing
from fer_pipeline.networks.preprocessing import Preprocessing

GAP = 2  # white pixels between the pictures


def tile(pictures: UInt8[np.ndarray, "rows columns h w 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Pictures as one, with white gaps."""
    rows, columns, height, width, _ = pictures.shape
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + GAP), column * (width + GAP)
            sheet[top : top + height, left : left + width] = pictures[row, column]
    return sheet


def write_previews(
    folder: Path,
    images: Float32[np.ndarray, "steps n 3 h w"],
    *,
    classes: Sequence[str],
    preprocessing: Preprocessing,
) -> None:
    """`grid.png` (a row a step, columns by class) and `<class>.png` (a row a step, the class's images)."""
    steps, count = images.shape[:2]
    flat = torch.from_numpy(images.reshape(-1, *images.shape[2:]))
    pixels = preprocessing.restore(flat).numpy()
    pixels = pixels.reshape(steps, count, *pixels.shape[1:])
    per_class = count // len(classes)
    _write_png(folder / "grid.png", tile(pixels))
    for index, name in enumerate(classes):
        _write_png(folder / f"{name}.png", tile(pixels[:, index * per_class : (index + 1) * per_class]))


def _write_png(path: Path, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, "PNG")
