"""Write record batches to Arrow IPC files and read them through a memory map; write and read tables as Parquet.

Embeddings and scores are written once and read often. An IPC file is read in place, without decoding, and a column of
fixed-size lists is one matrix. Every reader of either format comes through here: a file has the columns that the reader
expects, with values in them where they are not nullable, or is a DataError. What Arrow maps it does not check: offsets
and lengths that lead out of the file would end the process, so that buffers are measured before they are used.
"""

import json
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64
from pydantic import BaseModel, ConfigDict, PositiveInt

from fer_pipeline.artifacts.seed_folders import find_files
from fer_pipeline.core.documents import one_line, parse_json
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import describe_error, replacing
from fer_pipeline.core.settings import AllSeen

METADATA_KEY = b"fer_pipeline"
# Of a write to the disk: the system then keeps the file in large pages, and mapping and reading it cost half as much.
WRITE_BYTES = 2**23
ANY_LENGTH = 0  # of fixed-size lists, in the columns that a reader expects
OPTIONAL = {b"optional": b"true"}  # metadata of a column that a file may lack
RERUN = "remove it and rerun its stage"


Rows = TypeVar("Rows", pa.RecordBatch, pa.Table)


class Metadata(BaseModel):
    """The values that `encode_metadata` stores and something depends on; there may be others beside them."""

    model_config = ConfigDict(extra="allow", strict=True)

    classes: list[str] = []
    seeds: list[int] = []
    crop: PositiveInt = 1
    model: str = ""
    labeller_seen: AllSeen = {}


def encode_metadata(**values: Any) -> dict[bytes, bytes]:
    """Returns values as schema metadata, the same bytes for the same values."""
    return {METADATA_KEY: json.dumps(values, sort_keys=True).encode()}


def required(columns: Mapping[str, pa.DataType], *, remedy: str = RERUN) -> pa.Schema:
    """Returns columns as a reader expects them that must all have a value in every row.

    `remedy` is what to do about a file that has them otherwise.
    """
    fields = [pa.field(name, kind, nullable=False) for name, kind in columns.items()]
    return pa.schema(fields, metadata={b"remedy": remedy.encode()})


def remedy_of(expected: pa.Schema) -> str:
    """Returns what to do about a file that has other columns than its reader expects."""
    return (expected.metadata or {}).get(b"remedy", RERUN.encode()).decode()


def schema_metadata(schema: pa.Schema, path: Path) -> dict[str, Any]:
    """Returns what `encode_metadata` stored in a file's schema, nothing where another program wrote it."""
    try:
        stored = parse_json((schema.metadata or {}).get(METADATA_KEY, b"{}"))
        return Metadata.model_validate(stored).model_dump(exclude_unset=True)
    except ValueError as error:
        raise unreadable(path, error, "file of this pipeline, by its metadata") from None


def matrix_column(values: np.ndarray) -> pa.FixedSizeListArray:
    """Returns a matrix as a column of fixed-size lists, without a copy where its rows are contiguous."""
    assert values.ndim == 2
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def matrix_view(column: pa.FixedSizeListArray) -> np.ndarray:
    """Returns a column of fixed-size lists as a matrix that shares its memory.

    No list may be null; a number that is null is Arrow's own error.
    """
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
    paths = find_files(folder, pattern)
    if not paths:
        raise DataError(f"no shards in {folder}; run the stage that writes it (dvc repro)")
    return paths


def unreadable(path: Path, error: Exception, kind: str = "Arrow file", remedy: str = RERUN) -> DataError:
    """Returns the one line about a damaged file."""
    return DataError(f"{path} is no readable {kind} ({describe_error(error)}); {remedy}")


@contextmanager
def refuse_damage(path: Path, expected: pa.Schema, kind: str = "Arrow file") -> Iterator[None]:
    """Makes a DataError of what Arrow says while a file is read."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; {remedy_of(expected).removeprefix('remove it and ')}") from None
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise unreadable(path, error, kind, remedy_of(expected)) from None


def open_ipc(path: Path, expected: pa.Schema) -> pa.ipc.RecordBatchFileReader:
    """Opens a file through a memory map; one that is damaged, or of other columns, is a DataError.

    Its batches are still to be checked; `read_batches`, `read_ipc` and `stream_ipc` do.
    """
    with refuse_damage(path, expected):
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    check_columns(path, reader.schema, expected, only=True)
    return reader


def read_batches(path: Path, expected: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yields the record batches of a file in order, each a view into the memory map."""
    reader = open_ipc(path, expected)
    checks = list_checks(reader.schema, expected)
    for number in range(reader.num_record_batches):
        with refuse_damage(path, expected):
            batch = reader.get_batch(number)
            batch.validate()
        check_values(path, batch, expected, checks)
        yield batch


def read_ipc(path: Path, expected: pa.Schema) -> pa.Table:
    """Returns a whole file as views into the memory map."""
    reader = open_ipc(path, expected)
    with refuse_damage(path, expected):
        table = reader.read_all()
        table.validate()
    check_values(path, table, expected, list_checks(table.schema, expected))
    return table


def stream_ipc(path: Path, expected: pa.Schema, *, rows: int) -> Iterator[pa.Table]:
    """Yields a file in order, at most `rows` at a time, as views; memory does not grow with the file.

    The pages of a part are given back when the next part is asked for: the views stay valid, but using them reads the
    file again. Small record batches cost least this way: Arrow's own memory map asks the system once for each.
    """
    with refuse_damage(path, expected):
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        reader = pa.ipc.open_file(pa.py_buffer(mapped))
    check_columns(path, reader.schema, expected, only=True)
    with refuse_damage(path, expected):
        table = reader.read_all()
        table.validate()
    checks = list_checks(table.schema, expected)
    for start in range(0, table.num_rows, rows):
        part = table if table.num_rows <= rows else table.slice(start, rows)
        check_values(path, part, expected, checks)  # and not those of all parts at once: that would read the file twice
        yield part
        if table.num_rows > rows and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def check_columns(path: Path, found: pa.Schema, expected: pa.Schema, *, only: bool = False) -> None:
    """Refuses a file that lacks an expected column, doubles one, or has it of another type; `only`: or has others."""
    with refuse_damage(path, expected):  # of names that are no text
        if fault := _find_difference(found, expected, only=only):
            raise DataError(f"{path} {fault}; {remedy_of(expected)}")


def _find_difference(found: pa.Schema, expected: pa.Schema, *, only: bool) -> str:
    names = found.names
    needed = [field.name for field in expected if field.metadata != OPTIONAL]
    if absent := [name for name in needed if name not in names]:
        return f"has no column {', '.join(absent)}; found {one_line(', '.join(names), 160)}"
    for field in [field for field in expected if field.name in names]:
        if (count := names.count(field.name)) > 1:
            return f"has {count} columns {field.name}"
        kind = found.field(field.name).type
        if not _fits(kind, field.type):
            fault = f"column {field.name} has {one_line(kind, 80)}, expected {field.type}"
            return f"is of another program or version (its {fault})"
    others = [name for name in names if name not in expected.names] if only else []
    return f"has the unknown column {one_line(others[0], 80)}" if others else ""


def _fits(found: pa.DataType, expected: pa.DataType) -> bool:
    if pa.types.is_struct(expected):
        children = {field.name: field.type for field in (found if pa.types.is_struct(found) else ())}
        return all(_fits(children.get(field.name, pa.null()), field.type) for field in expected)
    if pa.types.is_fixed_size_list(expected) and expected.list_size == ANY_LENGTH:
        return pa.types.is_fixed_size_list(found) and found.value_type == expected.value_type and found.list_size > 0
    return found == expected


def list_checks(found: pa.Schema, expected: pa.Schema) -> list[tuple[str, bool, bool]]:
    """Lists the columns of a file whose values are checked: name, whether by their offsets, and whether for nulls."""
    needed = {field.name for field in expected if not field.nullable}
    checks = [(field.name, not _is_measured(field.type), field.name in needed) for field in found]
    return [check for check in checks if any(check[1:])]


def check_values(
    path: Path, rows: pa.RecordBatch | pa.Table, expected: pa.Schema, checks: Sequence[tuple[str, bool, bool]]
) -> None:
    """Refuses texts and lists whose offsets or bytes are damaged, and rows without a value in a required column."""
    with refuse_damage(path, expected):
        for name, by_offsets, is_needed in checks:
            column = rows.column(name)
            if by_offsets:
                column.validate(full=True)
            if is_needed and column.null_count:
                where = f"{column.null_count:,} of {rows.num_rows:,} rows"
                raise DataError(f"{path} has no {name} in {where}; {remedy_of(expected)}")


def _is_measured(kind: pa.DataType) -> bool:
    """Tells whether the lengths of its buffers say all of a column that could lead out of them."""
    return pa.types.is_primitive(kind) or (pa.types.is_fixed_size_list(kind) and pa.types.is_primitive(kind.value_type))


class ParquetFile:
    """A Parquet file, read by column; what is wrong with it is a DataError whenever it shows.

    The columns that are read must be of the `expected` types. `kind` is a word for that error.
    """

    def __init__(self, path: Path, expected: pa.Schema, *, kind: str = "Parquet file", mapped: bool = True) -> None:
        self.path, self.expected, self.kind = path, expected, kind
        with self._refuse_damage():
            self._file = pq.ParquetFile(path, memory_map=mapped)
            self.metadata = self._file.metadata
        self.num_row_groups = self.metadata.num_row_groups

    @cached_property
    def schema(self) -> pa.Schema:
        """Returns all columns, which to work out costs a fifth of opening the file."""
        with self._refuse_damage():
            return self._file.schema_arrow

    @cached_property
    def names(self) -> list[str]:
        """Returns the names of all columns."""
        with self._refuse_damage():
            return self.schema.names

    def __enter__(self) -> "ParquetFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def require(self, columns: Sequence[str]) -> None:
        """Refuses a file without these columns."""
        self._chosen(columns)

    def row_counts(self) -> list[int]:
        """Returns the rows of each row group, from the footer."""
        return [self.metadata.row_group(group).num_rows for group in range(self.num_row_groups)]

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads columns of the whole file, all where none are named."""
        columns = self._chosen(columns)
        with self._refuse_damage():
            rows = self._file.read(columns)
        return self._checked(rows, self.metadata.num_rows)

    def read_row_group(self, group: int, columns: Sequence[str], *, use_threads: bool = True) -> pa.Table:
        """Reads columns of one row group."""
        columns = self._chosen(columns)
        with self._refuse_damage():
            rows = self._file.read_row_group(group, columns, use_threads=use_threads)
            expected = self.metadata.row_group(group).num_rows
        return self._checked(rows, expected)

    def iter_batches(
        self, rows: int, columns: Sequence[str] | None = None, *, use_threads: bool = True
    ) -> Iterator[pa.RecordBatch]:
        """Yields columns in order, at most `rows` rows at a time."""
        columns = self._chosen(columns)
        with self._refuse_damage():
            batches = self._file.iter_batches(rows, columns=columns, use_threads=use_threads)
        while True:
            with self._refuse_damage():
                batch = next(batches, None)
            if batch is None:
                return
            yield self._checked(batch, batch.num_rows)

    def _chosen(self, columns: Sequence[str] | None) -> list[str]:
        chosen = self.names if columns is None else list(columns)
        names = {*chosen, *(name.partition(".")[0] for name in chosen)}
        expected = [field for field in self.expected if field.name in names]
        check_columns(self.path, self.schema, pa.schema(expected, metadata=self.expected.metadata))
        return chosen

    def _checked(self, rows: Rows, expected: int) -> Rows:
        if rows.num_rows != expected:
            fault = ValueError(f"{rows.num_rows:,} rows where its footer says {expected:,}")
            raise unreadable(self.path, fault, self.kind, remedy_of(self.expected))
        check_values(self.path, rows, self.expected, list_checks(rows.schema, self.expected))
        return rows

    def _refuse_damage(self) -> AbstractContextManager[None]:
        return refuse_damage(self.path, self.expected, self.kind)
