"""Two sequences under strong visible light, with more frames than are read, and one under weak light."""

from pathlib import Path

import numpy as np
from PIL import Image

FRAMES = {"VL/Strong/P001/Anger": 5, "VL/Strong/P002/Surprise": 4, "VL/Weak/P001/Anger": 4}
EXPECTED = {
    **{f"P001/Anger/00{frame}.png": ("anger", "P001") for frame in (2, 3, 4)},
    **{f"P002/Surprise/00{frame}.png": ("surprise", "P002") for frame in (1, 2, 3)},
}


def build(folder: Path) -> dict:
    rng = np.random.default_rng(8)
    pictures = {}
    for place, frames in FRAMES.items():
        (folder / "OriginalImg" / place).mkdir(parents=True)
        for frame in range(frames):
            pixels = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "OriginalImg" / place / f"{frame:03d}.png")
            pictures.setdefault(f"{place.removeprefix('VL/Strong/')}/{frame:03d}.png", pixels)

    def spoil() -> None:
        for file in folder.rglob("*.png"):
            file.write_bytes(b"\0" * file.stat().st_size)

    expected = {name: (None, *meaning) for name, meaning in EXPECTED.items()}
    return {"path": folder, "options": {}, "expected": expected, "pictures": pictures, "spoil": spoil}
