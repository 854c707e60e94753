"""Four pictures of three persons, one of them named like a missing value, and files of other names."""

from pathlib import Path

import numpy as np
from PIL import Image

NAMES = {
    "KA.AN1.39.tiff": ("anger", "KA"),
    "NA.HA3.204.tiff": ("happiness", "NA"),
    "NA.NE1.199.png": ("neutral", "NA"),
    "YM.SU2.66.tiff.bmp": ("surprise", "YM"),
}


def build(folder: Path) -> dict:
    folder.mkdir()
    rng = np.random.default_rng(5)
    pictures = {}
    for name in NAMES:
        pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        pictures[name] = np.repeat(pixels[..., None], 3, axis=2)
    (folder / "README_FIRST.txt").write_text("# HAP SAD SUR ANG DIS FEA PIC\n")
    Image.fromarray(pixels).save(folder / "sheet.png")

    def spoil() -> None:
        for name in NAMES:
            (folder / name).write_bytes(b"\0" * (folder / name).stat().st_size)

    expected = {name: (None, label, person) for name, (label, person) in NAMES.items()}
    return {"path": folder, "options": {}, "expected": expected, "pictures": pictures, "spoil": spoil}
