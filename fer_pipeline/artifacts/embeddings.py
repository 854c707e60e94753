"""Read and write the embeddings of faces: `data/embeddings/<set>/part-*.arrow`.

Columns: `face_id`, `vector` fixed-size list of f16[d], every number finite. A shard holds the faces of the shard of
`data/faces` with the same number, in the same order. The metadata names the checkpoint by the SHA-256 of its weights:
embeddings of two checkpoints must never meet. Those of the anchor by a calibration model lie in `calibration`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float16

from fer_pipeline.artifacts import arrow
from fer_pipeline.core.errors import DataError

COLUMNS = arrow.required(
    {"face_id": pa.string(), "vector": pa.list_(pa.float16(), arrow.ANY_LENGTH)}, remedy="remove it and rerun embed"
)


@dataclass(frozen=True)
class Embeddings:
    """One batch: identifiers as an Arrow array, vectors as a view into the file."""

    face_id: pa.StringArray
    vector: Float16[np.ndarray, "n d"]

    def __len__(self) -> int:
        return len(self.face_id)


@dataclass(frozen=True)
class Block:
    """Consecutive faces of a shard; their vectors lie in several places of the file, one view each, in order."""

    face_id: pa.ChunkedArray
    parts: tuple[Float16[np.ndarray, "_ d"], ...]

    def __len__(self) -> int:
        return len(self.face_id)


def write_embeddings(
    path: Path,
    batches: Iterable[tuple[pa.StringArray, Float[np.ndarray, "_ d"]]],
    *,
    dimensions: int,
    model: str,
    shard: str,
) -> int:
    """Writes one shard in place and returns its rows; a NaN or infinite number is a DataError that names `shard`.

    `model` is the SHA-256 of the checkpoint's weights, `dimensions` the length of a vector.
    """
    fields = [pa.field("face_id", pa.string()), pa.field("vector", pa.list_(pa.float16(), dimensions))]
    schema = pa.schema(fields, metadata=arrow.encode_metadata(model=model))
    bad = 0

    def rows() -> Iterator[pa.RecordBatch]:
        nonlocal bad
        for face_id, vector in batches:
            with np.errstate(over="ignore"):  # what half precision cannot hold is counted below
                half = vector.astype(np.float16)
            bad += int((~np.isfinite(half).all(axis=1)).sum())
            yield pa.RecordBatch.from_arrays([face_id, arrow.matrix_column(half)], schema=schema)

    written = arrow.write_ipc(path, schema, rows())
    if bad:
        raise DataError(
            f"{shard}: {bad} of {written} faces have NaN or infinite features (half precision holds up to 65,504); "
            "train the primitive learner again with a lower learning rate"
        )
    return written


def iter_embeddings(path: Path, *, batch_size: int | None = None) -> Iterator[Embeddings]:
    """Yields the batches of one shard as views into its memory map, at most `batch_size` rows each."""
    for batch in arrow.read_batches(path, COLUMNS):
        step = batch_size or max(batch.num_rows, 1)
        for start in range(0, batch.num_rows, step):
            part = batch.slice(start, step)
            with arrow.refuse_damage(path, COLUMNS):
                vector = arrow.matrix_view(part.column("vector"))
            yield Embeddings(face_id=part.column("face_id"), vector=vector)


def stream_embeddings(path: Path, *, rows: int) -> Iterator[Block]:
    """Yields a shard in blocks of at most `rows` faces, for one pass over it.

    `arrow.stream_ipc` says how long the views are valid. A face without a vector is a DataError.
    """
    for table in arrow.stream_ipc(path, COLUMNS, rows=rows):
        with arrow.refuse_damage(path, COLUMNS):
            parts = tuple(map(arrow.matrix_view, table.column("vector").chunks))
        yield Block(table.column("face_id"), parts)


def embedding_paths(folder: Path) -> list[Path]:
    """Returns the shards of a set in order; shards of different checkpoints or widths are a DataError."""
    paths = arrow.list_shards(folder, "part-*.arrow")
    first = read_model_and_width(paths[0])
    for path in paths[1:]:
        if read_model_and_width(path) != first:
            raise DataError(f"{path} and {paths[0]} hold features of different checkpoints; rerun embed")
    return paths


def read_model_and_width(path: Path) -> tuple[str, int]:
    """Returns the hash of the checkpoint that a shard was made with and the length of its vectors."""
    schema = arrow.open_ipc(path, COLUMNS).schema
    return arrow.schema_metadata(schema, path).get("model", ""), schema.field("vector").type.list_size
