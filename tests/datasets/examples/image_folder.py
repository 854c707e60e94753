"""Two splits of two classes, with odd names, a text file among the pictures, and files that systems leave behind."""

from pathlib import Path

import numpy as np
from PIL import Image


def build(folder: Path) -> dict:
    names = {
        "train/Happy/naïve 名前 (1).png": ("train", "Happy"),
        "train/Happy/a#2.png": ("train", "Happy"),
        "train/sad/deeper/a.png": ("train", "sad"),
        "valid/Happy/a.png": ("val", "Happy"),
        "valid/sad/a.PNG": ("val", "sad"),
    }
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 256, (9, 7, 3), dtype=np.uint8) for name in names}
    for name, pixels in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    for name in (".DS_Store", "train/Happy/Thumbs.db", "train/.hidden/a.png", "@eaDir/x.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")

    def spoil() -> None:
        for name in names:
            (folder / name).write_bytes(b"\0" * (folder / name).stat().st_size)

    expected = {name: (split, label, None) for name, (split, label) in names.items()}
    return {"path": folder, "options": {}, "expected": expected, "pictures": pictures, "spoil": spoil}
