"""Record batches in, Arrow IPC files out, and back through a memory map with fixed-size lists as matrices.

Embeddings and scores are read far more often than they are written and are wider than they are odd: an IPC file is read
where it lies, without decoding, and a column of fixed-size lists is one matrix.
"""

import json
import mmap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int64

from fer_pipeline.core.errors import DataError

METADATA_KEY = b"fer_pipeline"
# Of a write to the disk: the system then keeps the file in large pages, and mapping and reading it cost half as much.
WRITE_BYTES = 2**23


def with_about(fields: Sequence[pa.Field], **about: Any) -> pa.Schema:
    """A schema that carries `about` in its metadata."""
    return pa.schema(list(fields), metadata={METADATA_KEY: json.dumps(about, sort_keys=True).encode()})


def about_of(schema: pa.Schema) -> dict[str, Any]:
    """What `with_about` stored."""
    return json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))


def matrix_column(values: np.ndarray) -> pa.FixedSizeListArray:
    """A matrix as a column of fixed-size lists, without a copy where its rows lie together."""
    assert values.ndim == 2
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def matrix_view(column: pa.FixedSizeListArray) -> np.ndarray:
    """A column of fixed-size lists as a matrix that shares its memory."""
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), column.type.list_size)


def is_among(column: pa.Array | pa.ChunkedArray, values: pa.Array) -> Bool[np.ndarray, " n"]:
    """Which entries of a column are among `values`."""
    found = pc.call_function("is_in", [column], pc.SetLookupOptions(value_set=values))
    return found.to_numpy(zero_copy_only=False) if isinstance(found, pa.Array) else found.to_numpy()


def places_among(column: pa.Array | pa.ChunkedArray, values: pa.Array) -> Int64[np.ndarray, " n"]:
    """Where each entry of a column first stands among `values`, -1 where it does not."""
    found = pc.call_function("index_in", [column], pc.SetLookupOptions(value_set=values))
    chunks = found.chunks if isinstance(found, pa.ChunkedArray) else [found]
    parts = [chunk.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64) for chunk in chunks]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def write_ipc(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Writes a file in place, batch by batch, and gives the number of rows; the caller names a temporary path."""
    rows = 0
    with pa.output_stream(str(path), compression=None, buffer_size=WRITE_BYTES) as stream:
        with pa.ipc.new_file(stream, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
                rows += batch.num_rows
    return rows


def ipc_paths(folder: Path) -> list[Path]:
    """The shards of a folder in order of their names."""
    found = sorted(path for path in folder.glob("part-*.arrow") if not path.name.startswith("."))
    if not found:
        raise DataError(f"no shards in {folder}; run the stage that writes it (dvc repro)")
    return found


def open_ipc(path: Path) -> pa.ipc.RecordBatchFileReader:
    """A file opened through a memory map; a damaged one is a DataError."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> DataError:
    """What is told of a damaged file."""
    words = " ".join(str(error).split())
    return DataError(f"{path} is no readable Arrow file ({words}); remove it and rerun its stage")


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The record batches of a file in order, each a view into the memory map."""
    reader = open_ipc(path)
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)


def walk_ipc(path: Path, *, rows: int) -> Iterator[pa.Table]:
    """A file in order, at most `rows` at a time, as views; memory does not grow with the file.

    What was walked over is given back as soon as the next part is asked for: the views stay good, but using them reads
    the file again. Small record batches cost least this way: Arrow's own memory map asks the system once for each.
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


def read_ipc(paths: Sequence[Path]) -> pa.Table:
    """Files as one table that stays on the disk until a column is used."""
    return pa.concat_tables([open_ipc(path).read_all() for path in paths])
