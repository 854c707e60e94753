"""Three pictures from the front, one from the side that looks to the front, and one of another name."""

from pathlib import Path

import numpy as np
from PIL import Image

NAMES = {
    "Rafd090_01_Caucasian_female_angry_frontal.png": ("anger", "01_Caucasian"),
    "Rafd090_28_Caucasian_male_disgusted_left.png": ("disgust", "28_Caucasian"),
    "Rafd090_63_Kid_male_surprised_right.png": ("surprise", "63_Kid"),
}
OTHERS = ("Rafd045_01_Caucasian_female_angry_frontal.png", "Rafd090_overview.png")


def build(folder: Path) -> dict:
    folder.mkdir()
    rng = np.random.default_rng(6)
    pictures = {name: rng.integers(0, 256, (12, 9, 3), dtype=np.uint8) for name in (*NAMES, *OTHERS)}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / name)

    def spoil() -> None:
        for name in NAMES:
            (folder / name).write_bytes(b"\0" * (folder / name).stat().st_size)

    expected = {name: (None, label, person) for name, (label, person) in NAMES.items()}
    return {"path": folder, "options": {}, "expected": expected, "pictures": pictures, "spoil": spoil}
