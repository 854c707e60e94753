"""Mined faces with their pictures on disk: `data/auxiliary/<pool>/<class>/part-*.parquet`, and `data/control` alike.

Columns: those of `data/faces`, then `pseudo_label` int64, `margin` f32 and `rank` int64 (from 1, over all pools); one
folder a class, best first. The pictures' bytes are those of the aligned faces, never encoded again. A class without a
mined face has no folder; a pool without any has one shard without rows, so that its columns can still be read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from fer_pipeline.artifacts.arrow import is_among, places_among, read_batches, write_ipc
from fer_pipeline.artifacts.faces import (
    ROWS_PER_GROUP,
    face_fields,
    image_schema,
    open_shard,
    read_about,
    shard_paths,
    write_shard,
)

EMPTY = "part-00000.parquet"


def auxiliary_schema(faces: Path, classes: Sequence[str]) -> pa.Schema:
    """The schema of auxiliary shards made of these faces; what their metadata says about crops is kept."""
    fields = [
        *face_fields(),
        pa.field("pseudo_label", pa.int64()),
        pa.field("margin", pa.float32()),
        pa.field("rank", pa.int64()),
    ]
    about = {key: value for key, value in read_about(faces).items() if key != "classes"}
    return image_schema(fields, classes, **about)


@dataclass(frozen=True)
class Collected:
    """Faces' rows in the order in which they were met, mapped into memory from a file."""

    batches: list[pa.RecordBatch]

    @property
    def face_id(self) -> pa.StringArray:
        """All identifiers."""
        return pa.chunked_array([batch.column("face_id") for batch in self.batches], pa.string()).combine_chunks()

    def rows(self, places: np.ndarray) -> pa.Table:
        """The rows at these places, in this order."""
        starts = np.cumsum([0, *(batch.num_rows for batch in self.batches)])
        owners = np.searchsorted(starts, places, side="right") - 1
        # Table.take would first join all pictures into one array, for every call.
        parts = [self.batches[o].slice(p - starts[o], 1) for o, p in zip(owners.tolist(), places.tolist(), strict=True)]
        return pa.Table.from_batches(parts).combine_chunks()


def collect_faces(faces: Path, wanted: pa.Array, spill: Path) -> Collected:
    """The wanted faces' rows, spilled to the file `spill` in shard order.

    Only row groups that hold a wanted face are read, one at a time, so memory does not grow with pool or choice.
    """
    schema = pa.schema(face_fields())
    write_ipc(spill, schema, wanted_batches(faces, wanted, schema))
    return Collected(list(read_batches(spill)))


def wanted_batches(faces: Path, wanted: pa.Array, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """One batch a row group that holds wanted faces."""
    for path in shard_paths(faces):
        shard = open_shard(path)
        for group in range(shard.num_row_groups):
            names = shard.read_row_group(group, columns=["face_id"]).column("face_id")
            found = is_among(names, wanted)
            if found.any():
                rows = shard.read_row_group(group, columns=schema.names).filter(pa.array(found))
                yield from rows.select(schema.names).cast(schema).combine_chunks().to_batches()


def write_class(folder: Path, collected: Collected, members: pa.Table, schema: pa.Schema, *, per_shard: int) -> None:
    """Writes the shards of one class; `members` has face_id, label, margin and rank, best first."""
    places = places_among(members.column("face_id"), collected.face_id)
    for number, start in enumerate(range(0, len(members), per_shard)):
        chosen = places[start : start + per_shard]
        groups = [collected.rows(chosen[i : i + ROWS_PER_GROUP]) for i in range(0, len(chosen), ROWS_PER_GROUP)]
        extra = members.slice(start, per_shard).select(["label", "margin", "rank"])
        columns = [*pa.concat_tables(groups).columns, *extra.columns]
        write_shard(folder / f"part-{number:05d}.parquet", pa.Table.from_arrays(columns, schema=schema))


def write_empty(folder: Path, schema: pa.Schema) -> None:
    """The shard of a pool of which nothing was taken."""
    write_shard(folder / EMPTY, schema.empty_table())


def class_counts(folder: Path) -> dict[str, int]:
    """How many faces each class folder holds, from the files' footers."""
    counts: dict[str, int] = {}
    for path in shard_paths(folder):
        rows = open_shard(path).metadata.num_rows
        if rows:
            counts[path.parent.name] = counts.get(path.parent.name, 0) + rows
    return counts
