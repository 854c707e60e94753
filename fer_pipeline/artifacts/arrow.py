"""Write record batches to Arrow IPC files and read them through a memory map; write plain tables as Parquet.

Embeddings and scores are written once and read often. An IPC file is read in place, without decoding, and a column of
fixed-size lists is one matrix.
"""

import json
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing

METADATA_KEY = b"fer_pipeline"
# Of a write to the disk: the system then keeps the file in large pages, and mapping and reading it cost half as much.
WRITE_BYTES = 2**23


def encode_metadata(**values: Any) -> dict[bytes, bytes]:
    """Returns values as schema metadata, the same bytes for the same values."""
    return {METADATA_KEY: json.dumps(values, sort_keys=True).encode()}


def schema_metadata(schema: pa.Schema) -> dict[str, Any]:
    """Returns what `encode_metadata` stored in a schema, nothing where another program wrote the file."""
    return json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))


def matrix_column(values: np.ndarray) -> pa.FixedSizeListArray:
    """Returns a matrix as a column of fixed-size lists, without a copy where its rows are contiguous."""
    assert values.ndim == 2
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def matrix_view(column: pa.FixedSizeListArray) -> np.ndarray:
    """Returns a column of fixed-size lists as a matrix that shares its memory; no list may be null."""
    assert not column.null_count
    width = column.type.list_size
    # A quarter of the time of `flatten`, which counts where record batches are small.
    values = column.values.to_numpy()[column.offset * width : (column.offset + len(column)) * width]
    return values.reshape(len(column), width)


def is_among(column: pa.Array | pa.ChunkedArray, values: pa.Array) -> Bool[np.ndarray, " n"]:
    """Returns which entries of a column are among `values`."""
    return positions_in(column, values) >= 0


def positions_in(column: pa.Array | pa.ChunkedArray, values: pa.Array) -> Int64[np.ndarray, " n"]:
    """Returns where each entry of a column first occurs in `values`, -1 where it does not."""
    positions = pc.call_function("index_in", [column], pc.SetLookupOptions(value_set=values))
    return positions.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def write_ipc(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Writes a file in place, batch by batch, and returns the number of rows; the caller names a temporary path."""
    rows = 0
    with pa.output_stream(str(path), compression=None, buffer_size=WRITE_BYTES) as stream:
        with pa.ipc.new_file(stream, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
                rows += batch.num_rows
    return rows


def write_rows(path: Path, rows: pa.Table) -> None:
    """Writes a table as Parquet, whole or not at all; the same rows give the same bytes."""
    with replacing(path) as temporary:
        pq.write_table(rows, temporary, compression="zstd")


def list_shards(folder: Path, pattern: str) -> list[Path]:
    """Returns the finished shards of a folder in order of their names; DataError where there is none."""
    paths = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
    if not paths:
        raise DataError(f"no shards in {folder}; run the stage that writes it (dvc repro)")
    return paths


def unreadable(path: Path, error: Exception, kind: str = "Arrow file") -> DataError:
    """Returns the one line about a damaged file."""
    return DataError(f"{path} is no readable {kind} ({' '.join(str(error).split())}); remove it and rerun its stage")


def open_ipc(path: Path) -> pa.ipc.RecordBatchFileReader:
    """Opens a file through a memory map; a damaged one is a DataError."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable(path, error) from None


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yields the record batches of a file in order, each a view into the memory map."""
    reader = open_ipc(path)
    yield from map(reader.get_batch, range(reader.num_record_batches))


def stream_ipc(path: Path, *, rows: int) -> Iterator[pa.Table]:
    """Yields a file in order, at most `rows` at a time, as views; memory does not grow with the file.

    The pages of a part are given back when the next part is asked for: the views stay valid, but using them reads the
    file again. Small record batches cost least this way: Arrow's own memory map asks the system once for each.
    """
    try:
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        table = pa.ipc.open_file(pa.py_buffer(mapped)).read_all()
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise unreadable(path, error) from None
    for start in range(0, table.num_rows, rows):
        yield table if table.num_rows <= rows else table.slice(start, rows)
        if table.num_rows > rows and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)
