"""Arrow IPC and Parquet of strangers: what is right comes back, everything else is one line and ends no process."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.artifacts import arrow
from fer_pipeline.artifacts.arrow import ANY_LENGTH, ParquetFile, read_batches, read_ipc, required, stream_ipc
from fer_pipeline.core.errors import DataError

COLUMNS = required({"name": pa.string(), "vector": pa.list_(pa.float32(), ANY_LENGTH)}, remedy="run it again")
VECTORS = np.arange(15, dtype=np.float32).reshape(5, 3)
NAMES = [f"name {number}" for number in range(5)]
Change = Callable[[bytearray], None]


def write(path: Path, columns: dict[str, pa.Array]) -> None:
    schema = pa.schema({name: column.type for name, column in columns.items()})
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, schema) as file:
        for part in (slice(0, 3), slice(3, None)):
            values = {name: column.to_pylist()[part] for name, column in columns.items()}
            file.write_batch(pa.RecordBatch.from_pydict(values, schema))


def read_by_batch(path: Path, expected: pa.Schema) -> Iterator[pa.Table]:
    yield from (pa.Table.from_batches([batch]) for batch in read_batches(path, expected))


def read_in_parts(path: Path, expected: pa.Schema) -> Iterator[pa.Table]:
    return stream_ipc(path, expected, rows=2)


def read_whole(path: Path, expected: pa.Schema) -> Iterator[pa.Table]:
    yield read_ipc(path, expected)


readers = pytest.mark.parametrize("read", [read_by_batch, read_in_parts, read_whole])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of two record batches with names of six letters and vectors of three numbers."""
    path = tmp_path / "part-00000.arrow"
    write(path, {"name": pa.array(NAMES), "vector": arrow.matrix_column(VECTORS)})
    return path


@readers
def test_what_was_written_comes_back(path: Path, read: Callable[..., Iterator[pa.Table]]) -> None:
    tables = list(read(path, COLUMNS))
    assert [name for table in tables for name in table["name"].to_pylist()] == NAMES
    parts = [arrow.matrix_view(chunk) for table in tables for chunk in table["vector"].chunks]
    np.testing.assert_array_equal(np.concatenate(parts), VECTORS)
    assert not any(part.flags.owndata for part in parts)


def patch(old: bytes, new: bytes) -> Change:
    def change(data: bytearray) -> None:
        place = data.find(old)
        assert place > 0
        data[place : place + len(new)] = new

    return change


def offsets(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def buffers(*pairs: tuple[int, int]) -> bytes:
    """Offset and length of buffers in the body of a record batch, as its header has them."""
    return struct.pack(f"<{2 * len(pairs)}q", *(number for pair in pairs for number in pair))


# The first batch: no bitmap, offsets of 4 x 4 bytes, 18 letters, no bitmaps, vectors of 3 x 12 bytes; each on a
# multiple of 8.
RIGHT = buffers((0, 0), (0, 16), (16, 18), (40, 0), (40, 0), (40, 36))
NAMED = offsets(0, 6, 12, 18)
DAMAGE = {
    "an offset before the letters": patch(NAMED, offsets(-(2**30), 6)),
    "an offset behind the file": patch(NAMED, offsets(0, 6, 12, 2**30)),
    "an offset in the middle behind the file": patch(NAMED, offsets(0, 2**30, 12)),
    "offsets that fall": patch(NAMED, offsets(0, 12, 6)),
    "letters that are none": patch(b"name 0", b"\xff\xfe\xff"),
    "vectors of no bytes": patch(RIGHT, RIGHT[:-8] + struct.pack("<q", 0)),
    "vectors behind the file": patch(RIGHT, RIGHT[:-16] + buffers((2**40, 36))),
    "vectors before the file": patch(RIGHT, RIGHT[:-16] + buffers((-64, 36))),
    "offsets of no bytes": patch(RIGHT, buffers((0, 0), (0, 0))),
    "letters of no bytes": patch(RIGHT, buffers((0, 0), (0, 16), (16, 0))),
    "more rows than there are": patch(struct.pack("<4q", 3, 0, 3, 0), struct.pack("<4q", 2**40, 0, 2**40, 0)),
    "fewer rows than none": patch(struct.pack("<4q", 3, 0, 3, 0), struct.pack("<4q", -3, 0, -3, 0)),
    "a cut": lambda data: data.__delitem__(slice(len(data) // 2, None)),
    "no schema": lambda data: data.__setitem__(slice(-64, -16), bytes(48)),
    "nothing": lambda data: data.clear(),
}


@readers
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_line(path: Path, damage: Change, read: Callable[..., Iterator[pa.Table]]) -> None:
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"part-00000\.arrow is no readable Arrow file \(.*\); run it again$") as raised:
        list(read(path, COLUMNS))
    assert str(raised.value).isprintable()


OTHERS = {
    "no vector": ({"name": pa.array(NAMES)}, "has no column vector; found name"),
    "numbers for names": (
        {"name": pa.array([1]), "vector": arrow.matrix_column(VECTORS[:1])},
        "column name has int64, expected string",
    ),
    "wider numbers": (
        {"name": pa.array(["a"]), "vector": arrow.matrix_column(VECTORS[:1].astype(np.float64))},
        r"column vector has fixed_size_list.*double.*expected fixed_size_list.*float",
    ),
    "one more column": (
        {"name": pa.array(["a"]), "vector": arrow.matrix_column(VECTORS[:1]), "more": pa.array([1])},
        "has the unknown column more",
    ),
    "a name that is null": (
        {"name": pa.array(["a", None]), "vector": arrow.matrix_column(VECTORS[:2])},
        "has no name in 1 of [12] rows",
    ),
}


@readers
@pytest.mark.parametrize(("columns", "told"), OTHERS.values(), ids=OTHERS)
def test_other_columns_are_told(
    tmp_path: Path, columns: dict[str, pa.Array], told: str, read: Callable[..., Iterator[pa.Table]]
) -> None:
    write(tmp_path / "other.arrow", columns)
    with pytest.raises(DataError, match=rf"other\.arrow .*{told}.*; run it again$"):
        list(read(tmp_path / "other.arrow", COLUMNS))


PARQUET = required({"name": pa.string()}, remedy="run it again").append(pa.field("number", pa.int64()))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A file of three row groups."""
    path = tmp_path / "table.parquet"
    rows = pa.table({"name": NAMES, "number": pa.array([1, None, 3, 4, 5], pa.int64()), "more": [[1.0]] * 5})
    pq.write_table(rows, path, row_group_size=2, compression="zstd", use_dictionary=False)
    return path


def test_parquet_comes_back_by_columns(table: Path) -> None:
    with ParquetFile(table, PARQUET) as file:
        assert (file.row_counts(), file.num_row_groups, file.names) == ([2, 2, 1], 3, ["name", "number", "more"])
        assert file.read().equals(pq.read_table(table))
        assert file.read_row_group(2, ["number"]).to_pydict() == {"number": [5]}
        assert [batch.to_pydict() for batch in file.iter_batches(4, ["name"])] == [
            {"name": NAMES[:4]},
            {"name": NAMES[4:]},
        ]


READS: dict[str, Callable[[ParquetFile], object]] = {
    "whole": lambda file: file.read(["name", "number"]),
    "by row group": lambda file: [file.read_row_group(group, ["name", "number"]) for group in range(3)],
    "by batch": lambda file: list(file.iter_batches(2, ["name", "number"])),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_damaged_parquet_is_one_line_whenever_it_shows(table: Path, read: Callable[[ParquetFile], object]) -> None:
    """In the footer, in the header of a page and in its compressed bytes, of which Arrow says OSError without errno."""
    right = table.read_bytes()
    start = pq.ParquetFile(table).metadata.row_group(1).column(0).data_page_offset
    for damaged in (
        right[:-4] + b"none",
        right[: len(right) // 2],
        right[:start] + b"\xff" * 16 + right[start + 16 :],
        right.replace(b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfe"),
        b"",
    ):
        assert damaged != right
        table.write_bytes(damaged)
        with pytest.raises(DataError, match=r"table\.parquet is no readable table \(.*\); run it again$") as raised:
            read(ParquetFile(table, PARQUET, kind="table", mapped=False))
        assert str(raised.value).isprintable()


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_other_parquet_is_told(tmp_path: Path, read: Callable[[ParquetFile], object]) -> None:
    texts, numbers = pa.array(["a"]), pa.array([1])
    for columns, names, told in (
        ([texts], ["name"], "has no column number; found name"),
        ([texts, numbers, numbers], ["name", "number", "number"], "has 2 columns number"),
        ([texts, texts], ["name", "number"], "column number has string, expected int64"),
        ([pa.array([None], pa.string()), numbers], ["name", "number"], "has no name in 1 of 1 rows"),
        ([pa.array([b"\xff"]), numbers], ["name", "number"], "column name has binary, expected string"),
    ):
        pq.write_table(pa.table(columns, names), tmp_path / "other.parquet")
        with pytest.raises(DataError, match=rf"other\.parquet .*{told}.*; run it again$"):
            read(ParquetFile(tmp_path / "other.parquet", PARQUET))
    with pytest.raises(DataError, match=r"none\.parquet does not exist; run it again$"):
        ParquetFile(tmp_path / "none.parquet", PARQUET)


def test_text_that_is_none_is_damage(tmp_path: Path) -> None:
    """Parquet's own reader takes any bytes for a text."""
    names = pa.array([b"\xff\xfe", b"b"]).view(pa.string())
    pq.write_table(pa.table({"name": names, "number": [1, 2]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"other\.parquet is no readable .*UTF8"):
        ParquetFile(tmp_path / "other.parquet", PARQUET).read()


@pytest.mark.parametrize(
    "stored",
    [b"", b"[]", b"{", b'"a"', b'{"classes": "anger"}', b'{"classes": [1]}', b'{"crop": "48"}', b'{"crop": -1}',
     b'{"crop": 1e999}', b'{"seeds": [null]}', b'{"model": {}}', b'{"classes": ["a"], "classes": ["b"]}', b"\xff"],
)  # fmt: skip
def test_metadata_of_another_kind_is_one_line(stored: bytes, tmp_path: Path) -> None:
    schema = pa.schema({}, metadata={arrow.METADATA_KEY: stored})
    with pytest.raises(DataError, match=r"a\.parquet is no readable file of this pipeline") as raised:
        arrow.schema_metadata(schema, tmp_path / "a.parquet")
    assert str(raised.value).isprintable()


def test_metadata_comes_back(tmp_path: Path) -> None:
    about = {"classes": ["a", "b"], "crop": 48, "border": "reflect", "seeds": [1], "model": "f", "note": None}
    schema = pa.schema({}, metadata=arrow.encode_metadata(**about))
    assert arrow.schema_metadata(schema, tmp_path) == about
    assert arrow.schema_metadata(pa.schema({}), tmp_path) == {}
