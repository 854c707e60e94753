"""Sides of `parquet`. In: the same encoded pictures in three forms. A round hands out each one and adds up bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

Round = Callable[[], dict[str, Any]]


def ours(folder: str) -> Round:
    """Parquet shards, the pictures alone, as the files and the tar members are read."""
    from fer_pipeline.artifacts.faces import encoded_images, iter_columns, shard_paths

    def once() -> dict[str, Any]:
        pictures = total = 0
        for path in shard_paths(Path(folder)):
            for batch in iter_columns(path, ["image.bytes"]):
                encoded = encoded_images(batch)
                pictures += len(encoded)
                total += sum(map(len, encoded))
        return {"pictures": pictures, "bytes": total}

    once()
    return once


def ours_named(folder: str) -> Round:
    """The same with the faces' identifiers, in batches of 256, as `embed` reads them."""
    from fer_pipeline.artifacts.faces import iter_encoded, shard_paths

    def once() -> dict[str, Any]:
        pictures = total = 0
        for path in shard_paths(Path(folder)):
            for face_id, encoded in iter_encoded(path, batch_size=256):
                pictures += len(face_id)
                total += sum(map(len, encoded))
        return {"pictures": pictures, "bytes": total}

    once()
    return once


def webdataset(folder: str) -> Round:
    """WebDataset over tar files, without decoding, in this process."""
    import webdataset

    tars = [str(path) for path in sorted(Path(folder).glob("*.tar"))]

    def once() -> dict[str, Any]:
        pictures = total = 0
        for sample in webdataset.WebDataset(tars, shardshuffle=False):
            pictures += 1
            total += len(sample["jpg"])
        return {"pictures": pictures, "bytes": total}

    once()
    return once


def files(folder: str) -> Round:
    """One file a picture, in order of their names."""
    import os

    def once() -> dict[str, Any]:
        pictures = total = 0
        for name in sorted(os.listdir(folder)):
            with open(os.path.join(folder, name), "rb") as stream:
                total += len(stream.read())
            pictures += 1
        return {"pictures": pictures, "bytes": total}

    once()
    return once
