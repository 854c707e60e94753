"""Read and write `reports/pool_labels/<recipe>.parquet`: what a final model calls some faces of its pool.

One row a face that was drawn: `face_id`, `predicted` (a name), `probability` (f32, of that class), `label` (the class
that the pool's own table gives it, null where none) and `image`, the crop as it lies in its shard, where the face is
shown: the surest and the least sure of each class. The metadata has the `seed` of the model and `pool`, the number of
all faces that were drawn from. A recipe without a pool has no row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fer_pipeline.artifacts import arrow
from fer_pipeline.artifacts.faces import decode_crop

RERUN = "run: dvc repro train_final"
LABELS = arrow.required({"face_id": pa.string(), "predicted": pa.string(), "probability": pa.float32()}, remedy=RERUN)
LABELS = LABELS.append(pa.field("label", pa.string())).append(pa.field("image", pa.binary()))


@dataclass(frozen=True)
class PoolLabels:
    """The rows, the seed of their model and the number of faces in its pool; `crops` are those that are shown."""

    rows: list[dict[str, Any]]
    crops: dict[str, Any]  # uint8 RGB by face_id
    seed: int
    pool: int


def write_pool_labels(path: Path, rows: Sequence[Mapping[str, Any]], *, seed: int, pool: int) -> None:
    """Write the rows; the same rows give the same bytes."""
    metadata = {**(LABELS.metadata or {}), **arrow.encode_metadata(seeds=[seed], pool=pool)}
    arrow.write_rows(path, pa.Table.from_pylist([*rows], schema=LABELS.with_metadata(metadata)))


def read_pool_labels(path: Path) -> PoolLabels | None:
    """Read the rows, None where none were written; a damaged file or crop is a DataError."""
    if not path.exists():
        return None
    file = arrow.ParquetFile(path, LABELS, kind="table of pool labels")
    about, rows = arrow.schema_metadata(file.schema, path), file.read(LABELS.names).to_pylist()
    crops = {row["face_id"]: decode_crop(row["image"], f"{path}, {row['face_id']}") for row in rows if row["image"]}
    with arrow.refuse_damage(path, LABELS, "table of pool labels"):
        if not rows:
            return None
        [seed], pool = about["seeds"], about["pool"]
        if not isinstance(pool, int):
            raise ValueError("its pool has no size")
    return PoolLabels(rows, crops, seed, pool)
