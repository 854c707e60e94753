"""Write distilled images as pictures that a person can look at (figure 4 of OS-FER, arXiv:2005.08551)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image

from fer_pipeline.core.files import replacing
from fer_pipeline.networks.preprocessing import Preprocessing

GAP = 2  # white pixels between the pictures


def write_previews(
    folder: Path, images: Float32[np.ndarray, "steps n 3 h w"], *, classes: Sequence[str], preprocessing: Preprocessing
) -> None:
    """Writes `grid.png` (a row a step, columns by class) and `<class>.png` (a row a step, the class's images)."""
    pixels = preprocessing.restore(torch.from_numpy(images).flatten(0, 1)).unflatten(0, images.shape[:2]).numpy()
    parts = dict(zip(classes, np.split(pixels, len(classes), axis=1), strict=True))
    for name, pictures in {"grid": pixels, **parts}.items():
        with replacing(folder / f"{name}.png") as temporary:
            Image.fromarray(tile(pictures)).save(temporary, "PNG")


def tile(pictures: UInt8[np.ndarray, "rows columns h w 3"]) -> UInt8[np.ndarray, "height width 3"]:
    padded = np.pad(pictures, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    rows, columns, height, width, _ = padded.shape
    return padded.swapaxes(1, 2).reshape(rows * height, columns * width, 3)[:-GAP, :-GAP]
