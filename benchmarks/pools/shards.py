"""Shards of faces to measure the engine on: a few pictures under names of their own, in any number of files."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from fer_pipeline.artifacts.faces import encode, face_schema, write_parquet, write_shard
from fer_pipeline.core.expressions import BASIC_7

DRAWN = 64
MARK = b"shard 000000"


def write_pictures(folder: Path, *, shards: int, rows: int, crop: int, seed: int) -> None:
    """Shards of `rows` smooth random pictures each."""
    pictures = [_smooth(np.random.default_rng([seed, number]), crop) for number in range(DRAWN)]
    for shard in range(shards):
        write_shard(folder / f"part-{shard:05d}.parquet", _table(shard, rows, pictures, crop))


def write_stubs(folder: Path, *, shards: int, rows: int, crop: int) -> None:
    """Shards as wide and long as real ones, but with a few bytes for each picture: for passes that decode nothing."""
    folder.mkdir(parents=True)
    first = folder / "first.tmp"
    write_parquet(first, _table(0, rows, [MARK], crop))
    data = first.read_bytes()
    first.unlink()
    assert MARK in data  # pictures are stored as they are, so that each file can be made another with one replacement
    for shard in range(shards):
        (folder / f"part-{shard:05d}.parquet").write_bytes(data.replace(MARK, b"shard %06d" % shard))


def _table(shard: int, rows: int, pictures: list[bytes], crop: int) -> pa.Table:
    columns = {
        "face_id": [f"pool/{shard:05d}/{row:06d}.jpg" for row in range(rows)],
        "image": [{"bytes": pictures[row % len(pictures)], "path": None} for row in range(rows)],
        "label": [None] * rows,
        "subject": [None] * rows,
        "split": ["train"] * rows,
        "landmarks": [[float(row % crop)] * 10 for row in range(rows)],
        "score": [1.0] * rows,
        "source": [f"{row:06d}.jpg" for row in range(rows)],
    }
    return pa.table(columns, schema=face_schema(BASIC_7, crop=crop, border="reflect", format="jpeg"))


def _smooth(random: np.random.Generator, crop: int) -> bytes:
    coarse = random.integers(0, 256, (crop // 8, crop // 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
    noise = random.integers(-12, 13, coarse.shape)
    return encode(np.clip(coarse + noise, 0, 255).astype(np.uint8), quality=90)
