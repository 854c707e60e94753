"""Three sequences of two persons: one of fear, one of contempt, one without a label; and what systems leave behind."""

from pathlib import Path

import numpy as np
from PIL import Image

SEQUENCES = {("S005", "001"): (6, 4), ("S010", "002"): (5, 2), ("S010", "003"): (4, None)}  # frames, code
EXPECTED = {
    "S005/001/S005_001_00000001.png": "neutral",
    **{f"S005/001/S005_001_0000000{frame}.png": "fear" for frame in (4, 5, 6)},
    "S010/002/S010_002_00000001.png": "neutral",
    **{f"S010/002/S010_002_0000000{frame}.png": "contempt" for frame in (3, 4, 5)},
}


def build(folder: Path) -> dict:
    rng = np.random.default_rng(7)
    pictures = {}
    for (person, sequence), (frames, code) in SEQUENCES.items():
        place = folder / "cohn-kanade-images" / person / sequence
        labels = folder / "Emotion" / person / sequence  # there without a label, too, as in the archive
        place.mkdir(parents=True)
        labels.mkdir(parents=True)
        for frame in range(1, frames + 1):
            name, pixels = f"{person}_{sequence}_{frame:08d}", rng.integers(0, 256, (9, 12), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{name}.png")
            pictures[f"{person}/{sequence}/{name}.png"] = np.repeat(pixels[..., None], 3, axis=2)
        if code is not None:
            (labels / f"{name}_emotion.txt").write_text(f"   {code:.7e}\n")
    for name in ("cohn-kanade-images/.DS_Store", "Emotion/S005/001/.DS_Store"):
        (folder / name).write_bytes(b"x")

    def spoil() -> None:
        for file in (folder / "cohn-kanade-images").rglob("*.png"):
            file.write_bytes(b"\0" * file.stat().st_size)

    expected = {name: (None, label, name[:4]) for name, label in EXPECTED.items()}
    return {"path": folder, "options": {}, "expected": expected, "pictures": pictures, "spoil": spoil}
