"""Read and write mined faces with their images: `data/auxiliary/<pool>/<class>/part-*.parquet`.

So are laid out `data/control`, `data/second_rule` and `data/true_labels`, what mined faces are compared with, and
`data/reviewed`, the faces of which people said what they show: as aligned faces, whose `label` that is.

Columns: those of `data/faces`, then `pseudo_label` int64, `margin` f32 and `rank` int64 (from 1, over all pools); one
folder a class, best first. The images' bytes are those of the aligned faces, never encoded again. A class without a
mined face has no folder; a pool without any has one shard without rows, so that its columns can still be read. Where
registered weights are behind the labeller, `labeller_seen` in the metadata says what they were trained on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fer_pipeline.artifacts import faces as aligned
from fer_pipeline.artifacts.arrow import is_among, positions_in, read_batches, refuse_damage, write_ipc
from fer_pipeline.artifacts.faces import ROWS_PER_GROUP, open_shard, shard_paths, write_shard


def auxiliary_schema(faces: Path, classes: Sequence[str], seen: Mapping[str, Any] | None = None) -> pa.Schema:
    """Returns the schema of auxiliary shards of these faces, with what their metadata says about crops.

    `seen`, where there is some, says what registered weights behind the labeller were trained on.
    """
    extra = pa.schema({"pseudo_label": pa.int64(), "margin": pa.float32(), "rank": pa.int64()})
    about = _about_crops(faces) | ({"labeller_seen": seen} if seen else {})
    return aligned.image_schema([*aligned.FACE_FIELDS, *extra], classes, **about)


def reviewed_schema(faces: Path, classes: Sequence[str]) -> pa.Schema:
    """Returns the schema of shards of these faces with labels by people: that of aligned faces."""
    return aligned.image_schema(aligned.FACE_FIELDS, classes, **_about_crops(faces))


def _about_crops(faces: Path) -> dict[str, Any]:
    return {key: value for key, value in aligned.read_metadata(faces).items() if key != "classes"}


@dataclass(frozen=True)
class FaceRows:
    """The rows of some faces in the order of their shards, mapped into memory from a file."""

    batches: list[pa.RecordBatch]

    @property
    def face_id(self) -> pa.StringArray:
        """Returns all identifiers."""
        return pa.chunked_array([batch.column("face_id") for batch in self.batches], pa.string()).combine_chunks()

    def take(self, positions: np.ndarray) -> pa.Table:
        """Returns the rows at these positions, in this order."""
        starts = np.cumsum([0, *(batch.num_rows for batch in self.batches)])
        owners = np.searchsorted(starts, positions, side="right") - 1
        offsets = positions - starts[owners]
        # Table.take would first join all images into one array, for every call.
        parts = [self.batches[o].slice(i, 1) for o, i in zip(owners.tolist(), offsets.tolist(), strict=True)]
        return pa.Table.from_batches(parts).combine_chunks()


def collect_faces(faces: Path, wanted: pa.Array, spill: Path) -> FaceRows:
    """Copies the rows of the wanted faces to the file `spill` in shard order and maps it into memory.

    Only row groups that hold a wanted face are read, one at a time, so memory does not grow with the pool.
    """
    schema = pa.schema(aligned.FACE_FIELDS)

    def read_wanted() -> Iterator[pa.RecordBatch]:
        for shard in map(open_shard, shard_paths(faces)):
            for group in range(shard.num_row_groups):
                mask = is_among(shard.read_row_group(group, columns=["face_id"]).column("face_id"), wanted)
                if mask.any():
                    rows = shard.read_row_group(group, columns=schema.names).filter(pa.array(mask))
                    with refuse_damage(shard.path, shard.expected, shard.kind):
                        chosen = rows.select(schema.names).cast(schema).combine_chunks()
                    yield from chosen.to_batches()

    write_ipc(spill, schema, read_wanted())
    return FaceRows(list(read_batches(spill, schema)))


def write_class(folder: Path, rows: FaceRows, members: pa.Table, schema: pa.Schema, *, per_shard: int) -> None:
    """Writes the shards of one class; `members` has face_id, label, margin and rank, best first.

    By the schema the label is a pseudo-label beside margin and rank, or that of the face itself.
    """
    positions = positions_in(members.column("face_id"), rows.face_id)
    for number, start in enumerate(range(0, len(members), per_shard)):
        chosen = positions[start : start + per_shard]
        groups = [rows.take(chosen[i : i + ROWS_PER_GROUP]) for i in range(0, len(chosen), ROWS_PER_GROUP)]
        extra, faces = members.slice(start, per_shard), pa.concat_tables(groups)
        if "pseudo_label" in schema.names:
            columns = [*faces.columns, *extra.select(["label", "margin", "rank"]).columns]
        else:
            columns = faces.set_column(faces.column_names.index("label"), "label", extra.column("label")).columns
        write_shard(folder / f"part-{number:05d}.parquet", pa.Table.from_arrays(columns, schema=schema))
