"""Two parts of two row groups each, as the stage `synthesize` writes them; the pool's rows have no label."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def build(folder: Path) -> dict:
    folder.mkdir()
    rng = np.random.default_rng(3)
    expected: dict = {}
    encoded: dict[str, bytes] = {}
    for number in range(10):
        name = f"s{number:05d}"
        expected[name] = (
            "test" if number % 3 == 0 else "train",
            None if number % 4 == 0 else "fear",
            f"p{number // 2}",
        )
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(buffer, format="jpeg", quality=95)
        encoded[name] = buffer.getvalue()

    def write(spoiled: bool) -> None:
        names = list(expected)
        for part, chosen in enumerate((names[:6], names[6:])):
            splits, labels, subjects = zip(*(expected[name] for name in chosen), strict=True)
            images = [b"\0" * len(encoded[name]) if spoiled else encoded[name] for name in chosen]
            columns = {
                "sample_id": chosen,
                "image": pa.array(images, pa.binary()),
                "label": pa.array(labels, pa.string()),
                "subject": subjects,
                "split": splits,
            }
            pq.write_table(pa.table(columns), folder / f"part-{part:05d}.parquet", row_group_size=3)

    write(spoiled=False)
    pictures = {name: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for name, data in encoded.items()}
    return {
        "path": folder,
        "options": {},
        "expected": expected,
        "pictures": pictures,
        "spoil": lambda: write(spoiled=True),
    }
