"""A list with columns of other names, a semicolon between them, a byte order mark, quotes and an empty label."""

from pathlib import Path

import numpy as np
from PIL import Image

TABLE = """\
Subject ID;file name;emotion (voted);Usage
p1;a.png;Happy;Training
p1;"sub/b;1.png";sad;PrivateTest

p2;./sub/ü.png;;validation
;c.png;Angry;
"""


def build(folder: Path) -> dict:
    expected = {
        "a.png": ("train", "Happy", "p1"),
        "sub/b;1.png": ("test", "sad", "p1"),
        "sub/ü.png": ("val", None, "p2"),
        "c.png": (None, "Angry", None),
    }
    rng = np.random.default_rng(1)
    pictures = {name: rng.integers(0, 256, (9, 7, 3), dtype=np.uint8) for name in expected}
    (folder / "images" / "sub").mkdir(parents=True)
    (folder / "list.csv").write_text(TABLE, encoding="utf-8-sig")
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / "images" / name)

    def spoil() -> None:
        for name in pictures:
            (folder / "images" / name).write_bytes(b"spoiled")

    options = {
        "images": "images",
        "image": "file name",
        "label": "emotion (voted)",
        "subject": "Subject ID",
        "split": "Usage",
    }
    return {"path": folder, "options": options, "expected": expected, "pictures": pictures, "spoil": spoil}
