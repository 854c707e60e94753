"""Features on disk: identifiers and half-precision vectors in, `data/embeddings/<set>/part-*.arrow` out, and back.

Columns: `face_id`, `vector` fixed-size list of f16[d], every number finite. A shard holds the faces of the shard of
`data/faces` with the same number, in the same order. The metadata names the checkpoint by the SHA-256 of its weights:
features of two checkpoints must never meet.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float16

from fer_pipeline.artifacts.arrow import (
    about_of,
    ipc_paths,
    matrix_column,
    matrix_view,
    open_ipc,
    read_batches,
    walk_ipc,
    with_about,
    write_ipc,
)
from fer_pipeline.core.errors import DataError


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


def embedding_schema(dimensions: int, *, model: str) -> pa.Schema:
    """The schema of features of `dimensions` numbers from the checkpoint with this hash."""
    fields = [pa.field("face_id", pa.string()), pa.field("vector", pa.list_(pa.float16(), dimensions))]
    return with_about(fields, model=model)


def write_embeddings(
    path: Path,
    batches: Iterable[tuple[pa.StringArray, Float[np.ndarray, "_ d"]]],
    *,
    dimensions: int,
    model: str,
    shard: str,
) -> int:
    """Writes one shard in place and gives its rows; a NaN or infinite number is a DataError that names `shard`."""
    schema = embedding_schema(dimensions, model=model)
    bad = 0

    def rows() -> Iterator[pa.RecordBatch]:
        nonlocal bad
        for face_id, vector in batches:
            with np.errstate(over="ignore"):  # what half precision cannot hold is counted below
                half = vector.astype(np.float16)
            bad += int((~np.isfinite(half).all(axis=1)).sum())
            yield pa.RecordBatch.from_arrays([face_id, matrix_column(half)], schema=schema)

    written = write_ipc(path, schema, rows())
    if bad:
        raise DataError(
            f"{shard}: {bad} of {written} faces have NaN or infinite features (half precision holds up to 65,504); "
            "train the primitive learner again with a lower learning rate"
        )
    return written


def iter_embeddings(path: Path, *, batch_size: int | None = None) -> Iterator[Embeddings]:
    """The batches of one shard as views into its memory map, at most `batch_size` rows each."""
    for batch in read_batches(path):
        step = batch_size or max(batch.num_rows, 1)
        for start in range(0, batch.num_rows, step):
            part = batch.slice(start, step)
            yield Embeddings(face_id=part.column("face_id"), vector=matrix_view(part.column("vector")))


def walk_embeddings(path: Path, *, rows: int) -> Iterator[Block]:
    """A shard in blocks of at most `rows` faces, for one pass over it; `walk_ipc` says how long the views are good."""
    for table in walk_ipc(path, rows=rows):
        column = table.column("vector")
        if column.null_count:
            raise DataError(f"{path} has {column.null_count:,} faces without a vector; remove it and rerun embed")
        yield Block(table.column("face_id"), tuple(rows_of(chunk) for chunk in column.chunks))


def rows_of(chunk: pa.FixedSizeListArray) -> Float16[np.ndarray, "n d"]:
    """`matrix_view` in a quarter of the time, which counts where record batches are small."""
    width = chunk.type.list_size
    numbers = chunk.values.to_numpy()[chunk.offset * width : (chunk.offset + len(chunk)) * width]
    return numbers.reshape(len(chunk), width)


def embedding_paths(folder: Path) -> list[Path]:
    """The shards of a set in order; shards of different checkpoints or widths are a DataError."""
    paths = ipc_paths(folder)
    first = model_of(paths[0])
    for path in paths[1:]:
        if model_of(path) != first:
            raise DataError(f"{path} and {paths[0]} hold features of different checkpoints; rerun embed")
    return paths


def model_of(path: Path) -> tuple[str, int]:
    """The checkpoint's hash and the number of dimensions of a shard."""
    schema = open_ipc(path).schema
    columns = dict(zip(schema.names, schema.types, strict=True))
    vector = columns.get("vector")
    if vector is None or not pa.types.is_fixed_size_list(vector) or vector.value_type != pa.float16():
        found = f"has {vector}" if vector is not None else "is missing"
        raise DataError(
            f"{path} was not written by embed (its column vector {found}, expected lists of half-precision numbers); "
            "remove it and rerun embed"
        )
    return about_of(schema).get("model", ""), schema.field("vector").type.list_size
