"""Four rows in the layout of the published file, with Windows line ends and a blank line."""

from pathlib import Path

import numpy as np

ROWS = ((0, "Training", "anger", "train"), (3, "PublicTest", "happiness", "val"), (6, "PrivateTest", "neutral", "test"))


def build(folder: Path) -> dict:
    folder.mkdir()
    file = folder / "fer2013.csv"
    rng = np.random.default_rng(2)
    lines, expected, pictures = ["emotion,pixels,Usage"], {}, {}
    for row, (emotion, usage, label, split) in enumerate(ROWS):
        pixels = rng.integers(0, 256, (48, 48), dtype=np.uint8)
        lines += [f"{emotion},{' '.join(map(str, pixels.ravel()))},{usage}", ""]
        expected[f"fer{row:07d}"] = (split, label, None)
        pictures[f"fer{row:07d}"] = np.repeat(pixels[..., None], 3, axis=2)
    file.write_bytes("\r\n".join(lines).encode())

    def spoil() -> None:
        cells = [line.split(",") for line in file.read_text().splitlines()]
        spoiled = [
            ",".join((row[0], "x" * len(row[1]), row[2])) if row[0].isdigit() else ",".join(row) for row in cells
        ]
        file.write_bytes("\r\n".join(spoiled).encode())

    return {"path": folder, "options": {}, "expected": expected, "pictures": pictures, "spoil": spoil}
