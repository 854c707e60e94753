"""Write and read which picture each aligned face is: `data/contents/<set>.parquet`, to find equal faces without labels.

Columns: `face_id`, `split`, `subject` (null for none) and `content`, the 16 bytes of BLAKE2b of the crop as it is
encoded in its shard. One set of settings makes and encodes the crops of all sets and the encoder is deterministic, so
equal crops have equal bytes; hashing them costs no decoding. Where `align.sets` finds the faces of one set otherwise
(another detection, `prealigned`), the same photograph becomes another crop and is not seen to be equal; neither are
pictures that are merely alike.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_pipeline.artifacts.arrow import ParquetFile, is_among
from fer_pipeline.artifacts.faces import encoded_images, iter_columns, open_shard
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing

DIGEST_BYTES = 16
ROWS_AT_A_TIME = 2**16
CONTENTS = pa.schema(
    {"face_id": pa.string(), "split": pa.string(), "subject": pa.string(), "content": pa.binary(DIGEST_BYTES)}
)
TRAIN, TEST = "train", "test"  # the splits that are learned from and that are measured on


@dataclass(frozen=True)
class SharedCounts:
    """What a split has in common with `train`: persons by name, and its faces that are equal to one of `train`."""

    persons: int
    faces: int


@dataclass(frozen=True)
class SplitContents:
    """The faces of one split, in files of contents that may hold other splits too."""

    paths: Sequence[Path]
    split: str

    def column(self, name: str) -> Iterator[pa.Array]:
        """Yields a column in parts; memory does not grow with the files."""
        for path in self.paths:
            for batch in iter_contents(path, [name, "split"]):
                yield batch.filter(pc.field("split") == self.split).column(name)

    def distinct(self, name: str) -> pa.Array:
        """Returns the values of a column, each once, without nulls and empty strings."""
        parts = [part.unique() for part in self.column(name)]
        values = pa.chunked_array(parts, CONTENTS.field(name).type).unique().drop_null()
        return values.filter(pc.call_function("greater", [pc.call_function("binary_length", [values]), pa.scalar(0)]))

    def among(self, name: str, values: pa.Array) -> pa.Array:
        """Returns those of some values that stand in a column."""
        parts = [part.filter(pa.array(is_among(part, values))).unique() for part in self.column(name)]
        return pa.chunked_array(parts, CONTENTS.field(name).type).unique()


def hash_faces(shard: Path) -> Iterator[pa.RecordBatch]:
    """Yields the rows of one shard of faces, a row group at a time; its labels are not read."""
    if open_shard(shard).metadata.num_rows == 0:  # all its pictures were rejected
        return
    for batch in iter_columns(shard, ["face_id", "split", "subject", "image.bytes"]):
        hashes = [hashlib.blake2b(image, digest_size=DIGEST_BYTES).digest() for image in encoded_images(batch)]
        columns = [*map(batch.column, ("face_id", "split", "subject")), pa.array(hashes, pa.binary(DIGEST_BYTES))]
        yield pa.RecordBatch.from_arrays(columns, schema=CONTENTS)


def write_contents(path: Path, tables: Iterable[pa.Table]) -> None:
    """Writes a file of contents table by table, whole or not at all; the same tables give the same bytes."""
    with replacing(path) as temporary, pq.ParquetWriter(temporary, CONTENTS, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


def read_contents(path: Path) -> pa.Table:
    """Reads one file of contents as a whole."""
    return pa.Table.from_batches(iter_contents(path, CONTENTS.names), CONTENTS)


def iter_contents(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yields some columns of a file of contents in batches; a damaged file, or one of another form, is a DataError."""
    with ParquetFile(path, CONTENTS, kind="Parquet file of contents") as file:
        if file.schema != CONTENTS:
            raise DataError(f"{path} holds no contents of aligned faces; run align again")
        yield from file.iter_batches(ROWS_AT_A_TIME, columns)


def count_shared(first: SplitContents, second: SplitContents) -> SharedCounts:
    """Counts the persons that stand in both splits, and the faces of the second that are equal to one of the first."""
    persons = len(first.among("subject", second.distinct("subject")))
    return SharedCounts(persons, count_equal_faces(first, second))


def count_equal_faces(first: SplitContents, second: SplitContents) -> int:
    """Counts the faces of the second split that are equal to one of the first."""
    equal = first.among("content", second.distinct("content"))
    return sum(int(is_among(part, equal).sum()) for part in second.column("content")) if len(equal) else 0


def contents_path(folder: Path, name: str) -> Path:
    """Returns the file of one set in `data/contents`."""
    return folder / f"{name}.parquet"


def read_test_contents(folder: Path, names: Iterable[str]) -> pa.Array:
    """Returns what the test faces of some sets are, each content once; sets without a file are left out."""
    paths = [path for name in names if (path := contents_path(folder, name)).exists()]
    return SplitContents(paths, TEST).distinct("content")


def contents_of(path: Path, face_ids: pa.Array) -> dict[str, bytes]:
    """Returns which pictures some faces of a set are; faces that it does not have are left out."""
    found: dict[str, bytes] = {}
    for batch in iter_contents(path, ["face_id", "content"]):
        rows = batch.filter(pa.array(is_among(batch.column("face_id"), face_ids)))
        if rows.column("content").null_count:
            raise DataError(f"{path} does not say which picture every face is; run align again")
        found |= zip(rows.column("face_id").to_pylist(), rows.column("content").to_pylist(), strict=True)
    return found


def faces_with(path: Path, contents: pa.Array) -> pa.Array:
    """Returns the `face_id`s of a set whose faces have one of some contents."""
    parts = [
        batch.column("face_id").filter(pa.array(is_among(batch.column("content"), contents)))
        for batch in iter_contents(path, ["face_id", "content"])
    ]
    return pa.chunked_array(parts, pa.string()).combine_chunks()
