"""Label some faces of a pool by a trained network, so that a report can show what it is sure of.

A pool may hold millions of faces: a number of them is drawn at even chance, and only the row groups that hold one are
read.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from fer_pipeline.artifacts.faces import (
    decode_crop,
    encoded_images,
    open_shard,
    read_classes,
    shard_paths,
    stack_images,
)
from fer_pipeline.core.seeds import derive

DRAWN = 2000  # faces
SHOWN = 6  # of each class, from either end
BATCH = 256

Row = dict[str, Any]


def label_pool(
    folder: Path,
    predict: Callable[[UInt8[np.ndarray, "n h w 3"]], Float[np.ndarray, "n c"]],
    *,
    classes: Sequence[str],
    seed: int,
    drawn: int = DRAWN,
    shown: int = SHOWN,
) -> tuple[list[Row], int]:
    """Label at most `drawn` faces of a folder of shards, in their order; `predict` gives probabilities of `classes`.

    Returns:
        A row a face as `artifacts.pool_labels` has it, with the crop of the `shown` surest and the `shown` least sure
        of each class; the number of all faces.
    """
    total = sum(sum(open_shard(path).row_counts()) for path in shard_paths(folder))
    chosen = np.random.default_rng(derive(seed, "pool_labels")).choice(total, min(drawn, total), replace=False)
    own_classes, rows = read_classes(folder), list[Row]()
    faces = _read(folder, np.sort(chosen))
    while batch := [*islice(faces, BATCH)]:
        images = stack_images([decode_crop(image, f"{folder}, {name}") for name, _, image in batch])
        for (name, label, image), shares in zip(batch, predict(images), strict=True):
            known = None if label is None or label < 0 else own_classes[label]
            best = int(shares.argmax())
            rows.append({"face_id": name, "predicted": classes[best], "probability": float(shares[best])})
            rows[-1] |= {"label": known, "image": image}
    kept = set[str]()
    for name in classes:
        members = [row for row in rows if row["predicted"] == name]
        members.sort(key=lambda row: (-row["probability"], row["face_id"]))
        kept |= {row["face_id"] for row in [*members[:shown], *members[max(0, len(members) - shown) :]]}
    return [row if row["face_id"] in kept else {**row, "image": None} for row in rows], total


def _read(folder: Path, chosen: np.ndarray) -> Iterator[tuple[str, int | None, bytes]]:
    """Yield identifier, label and encoded crop of the rows with these numbers, counted over all shards."""
    start = 0
    for path in shard_paths(folder):
        shard = open_shard(path)
        names = ["face_id", "image.bytes", *({"label"} & {*shard.names})]
        for group, number in enumerate(shard.row_counts()):
            places = chosen[np.searchsorted(chosen, start) : np.searchsorted(chosen, start + number)] - start
            start += number
            if not len(places):
                continue
            rows = shard.read_row_group(group, names)
            images = encoded_images(rows.select(["image"]).combine_chunks().to_batches()[0])
            labels = rows["label"].to_pylist() if "label" in rows.column_names else [None] * number
            face_id = rows["face_id"].to_pylist()
            yield from ((face_id[place], labels[place], bytes(images[place])) for place in places.tolist())
