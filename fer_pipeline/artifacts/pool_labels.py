"""Make, write and read `reports/pool_labels/<recipe>.parquet`: what a final model calls some faces of its pool.

A pool may hold millions of faces: a number of them is drawn at even chance, and only the row groups that hold one are
read.

One row a face that was drawn: `face_id`, `predicted` (a name), `probability` (f32, of that class), `label` (the class
that the pool's own table gives it, null where none) and `image`, the crop as it lies in its shard, where the face is
shown: the surest and the least sure of each class. The metadata has the `seed` of the model and `pool`, the number of
all faces that were drawn from. A recipe without a pool has no row.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, UInt8

from fer_pipeline.artifacts import arrow
from fer_pipeline.artifacts.faces import (
    decode_crop,
    encoded_images,
    open_shard,
    read_classes,
    shard_paths,
    stack_images,
)
from fer_pipeline.core.seeds import derive

RERUN = "run: dvc repro train_final"
LABELS = arrow.required({"face_id": pa.string(), "predicted": pa.string(), "probability": pa.float32()}, remedy=RERUN)
LABELS = LABELS.append(pa.field("label", pa.string())).append(pa.field("image", pa.binary()))
DRAWN = 2000  # faces
SHOWN = 6  # of each class, from either end
BATCH = 256

Row = dict[str, Any]


@dataclass(frozen=True)
class PoolLabels:
    """The rows, the seed of their model and the number of faces in its pool; `crop` decodes that of a row."""

    path: Path
    rows: list[Row]
    seed: int
    pool: int

    def crop(self, row: Row) -> UInt8[np.ndarray, "h w 3"]:
        """Decode the crop of a row that has one; DataError where it is damaged."""
        return decode_crop(row["image"], f"{self.path}, {row['face_id']}")


def write_pool_labels(path: Path, rows: Sequence[Mapping[str, Any]], *, seed: int, pool: int) -> None:
    """Write the rows; the same rows give the same bytes."""
    metadata = {**(LABELS.metadata or {}), **arrow.encode_metadata(seeds=[seed], pool=pool)}
    arrow.write_rows(path, pa.Table.from_pylist([*rows], schema=LABELS.with_metadata(metadata)))


def read_pool_labels(path: Path) -> PoolLabels | None:
    """Read the rows, None where none were written; a damaged file is a DataError."""
    if not path.exists():
        return None
    file = arrow.ParquetFile(path, LABELS, kind="table of pool labels")
    about, rows = arrow.schema_metadata(file.schema, path), file.read(LABELS.names).to_pylist()
    with arrow.refuse_damage(path, LABELS, "table of pool labels"):
        if not rows:
            return None
        [seed], pool = about["seeds"], about["pool"]
        if not isinstance(pool, int):
            raise ValueError("its pool has no size")
    return PoolLabels(path, rows, seed, pool)


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
