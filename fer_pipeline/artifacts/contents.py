"""Write and read which picture each aligned face is: `data/contents/<set>.parquet`, to find equal faces without labels.

Columns: `face_id`, `split`, `subject` (null for none) and `content`, the 16 bytes of BLAKE2b of the crop as it is
encoded in its shard. One set of settings makes and encodes the crops of all sets and the encoder is deterministic, so
equal crops have equal bytes; hashing them costs no decoding. Where `align.sets` finds the faces of one set otherwise
(another detection, `prealigned`), the same photograph becomes another crop and is not seen to be equal; neither are
pictures that are merely alike. With `align.hashes` there is a column `hashes` for those: the perceptual hash of the
crop, and in the test split after it those of the crop as other landmarks would have cut it (`alignment.perceptual`).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt64

from fer_pipeline.artifacts.arrow import ParquetFile, is_among, positions_in
from fer_pipeline.artifacts.faces import encoded_images, iter_columns, open_shard
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing

DIGEST_BYTES = 16
BYTES = f"S{DIGEST_BYTES}"  # as numpy sorts them
ROWS_AT_A_TIME = 2**16
CONTENTS = pa.schema(
    {"face_id": pa.string(), "split": pa.string(), "subject": pa.string(), "content": pa.binary(DIGEST_BYTES)}
)
HASH_BYTES = 32
FREQUENCIES = 16  # of a perceptual hash, each way
# Bit by bit the place (row by row) of a frequency: the lowest 8 x 8 stand in the first word.
HASH_ORDER = sorted(range(FREQUENCIES**2), key=lambda place: (max(divmod(place, FREQUENCIES)), place))
# A mirrored picture has the other sign at each odd horizontal frequency.
MIRROR = np.packbits([place % 2 for place in HASH_ORDER]).view("<u8")
HASHED = CONTENTS.append(pa.field("hashes", pa.binary()))
TRAIN, TEST = "train", "test"  # the splits that are learned from and that are measured on
Look: TypeAlias = Callable[[Sequence[memoryview]], Sequence[bytes]]  # perceptual hashes of encoded crops
Hashes: TypeAlias = UInt64[np.ndarray, "_ 4"]  # perceptual hashes, of which the first word holds the lowest frequencies


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

    def repeated(self) -> pa.Array:
        """Returns the contents that more than one face has; Arrow's `value_counts` takes five times the memory."""
        kind = CONTENTS.field("content").type
        whole = pa.chunked_array([*self.column("content")], kind).drop_null().combine_chunks()
        values = np.sort(np.frombuffer(whole.buffers()[1] or b"", BYTES)[whole.offset :][: len(whole)])
        twice = np.unique(values[1:][values[1:] == values[:-1]])
        return pa.FixedSizeBinaryArray.from_buffers(kind, len(twice), [None, pa.py_buffer(twice.tobytes())])

    def among(self, name: str, values: pa.Array) -> pa.Array:
        """Returns those of some values that stand in a column."""
        parts = [part.filter(pa.array(is_among(part, values))).unique() for part in self.column(name)]
        return pa.chunked_array(parts, CONTENTS.field(name).type).unique()


def hash_faces(shard: Path, look: Look | None = None) -> Iterator[pa.RecordBatch]:
    """Yields the rows of one shard of faces, a row group at a time; its labels are not read.

    Without `look` there is no column of perceptual hashes.
    """
    if open_shard(shard).metadata.num_rows == 0:  # all its pictures were rejected
        return
    for batch in iter_columns(shard, ["face_id", "split", "subject", "image.bytes"]):
        images = encoded_images(batch)
        hashes = [hashlib.blake2b(image, digest_size=DIGEST_BYTES).digest() for image in images]
        columns = [*map(batch.column, ("face_id", "split", "subject")), pa.array(hashes, pa.binary(DIGEST_BYTES))]
        columns += [pa.array(look(images), pa.binary())] if look else []
        yield pa.RecordBatch.from_arrays(columns, schema=HASHED if look else CONTENTS)


def write_contents(path: Path, tables: Iterable[pa.Table], schema: pa.Schema = CONTENTS) -> None:
    """Writes a file of contents table by table, whole or not at all; the same tables give the same bytes."""
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


def read_contents(path: Path, schema: pa.Schema = CONTENTS) -> pa.Table:
    """Reads one file of contents as a whole; without perceptual hashes, where the schema does not name them."""
    return pa.Table.from_batches(iter_contents(path, schema.names), schema)


def iter_hashes(path: Path, split: str) -> Iterator[tuple[pa.StringArray, list[Hashes]]]:
    """Yields the faces of a split in parts, each face with its perceptual hashes; DataError where there are none."""
    for batch in iter_contents(path, ["face_id", "split", "hashes"]):
        rows = batch.filter(pc.field("split") == split)
        found = rows.column("hashes").to_pylist()
        if any(not one or len(one) % HASH_BYTES for one in found):
            raise DataError(f"{path} has a face without a whole perceptual hash; remove it and run align again")
        yield rows.column("face_id"), [np.frombuffer(one, "<u8").reshape(-1, 4) for one in found]


def iter_contents(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yields some columns of a file of contents in batches; a damaged file, or one of another form, is a DataError."""
    with ParquetFile(path, HASHED, kind="Parquet file of contents") as file:
        if file.schema not in (CONTENTS, HASHED):
            raise DataError(f"{path} holds no contents of aligned faces; run align again")
        if "hashes" in columns and file.schema != HASHED:
            raise DataError(
                f"{path} has no perceptual hashes, which mine.duplicates compares; set align.hashes to true and run: "
                "dvc repro mine"
            )
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


def read_split_contents(folder: Path, names: Iterable[str], split: str) -> pa.Array:
    """Returns what the faces of a split of some sets are, each content once; sets without a file are left out."""
    paths = [path for name in names if (path := contents_path(folder, name)).exists()]
    return SplitContents(paths, split).distinct("content")


def iter_repeated(paths: Mapping[str, Path], split: str) -> Iterator[tuple[str, pa.Array, Int64[np.ndarray, " n"]]]:
    """Yields the faces of which the sets together have an equal one: set, `face_id`s, and a number of each content.

    The files are read twice, so that of the faces that are there once no more than their contents is held.
    """
    repeated = SplitContents([*paths.values()], split).repeated()
    for name, path in paths.items():
        for batch in iter_contents(path, ["face_id", "split", "content"]) if len(repeated) else ():
            rows = batch.filter(pc.field("split") == split)
            number = positions_in(rows.column("content"), repeated)
            yield name, rows.column("face_id").filter(pa.array(number >= 0)), number[number >= 0]


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
