"""Faces of the train and validation parts of three films, and one of the test part, which has no label."""

from pathlib import Path

import numpy as np
from PIL import Image

NAMES = {
    "Train/Train_Aligned_Faces/Angry/Airheads_000519240_00000005.png": ("train", "anger", "Airheads"),
    "Train/Train_Aligned_Faces/Neutral/Hall_Pass_002_00000001.png": ("train", "neutral", "Hall_Pass"),
    "Val/Val_Aligned_Faces_new/Surprise/Bad_Santa_001_00000012.png": ("test", "surprise", "Bad_Santa"),
}


def build(folder: Path) -> dict:
    rng = np.random.default_rng(9)
    pictures = {}
    for name in (*NAMES, "Test/Test_Aligned_Faces/Hangover_001_00000002.png"):
        pictures[name] = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True)
        Image.fromarray(pictures[name]).save(folder / name)

    def spoil() -> None:
        for name in NAMES:
            (folder / name).write_bytes(b"\0" * (folder / name).stat().st_size)

    return {"path": folder, "options": {}, "expected": NAMES, "pictures": pictures, "spoil": spoil}
