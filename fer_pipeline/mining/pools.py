"""Scores of several pools in, one list of candidates out; and any of them back with their identifiers.

A face on the exclusion list and a face without a direction are no candidates; both are counted.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64

from fer_pipeline.artifacts.arrow import is_among
from fer_pipeline.artifacts.scores import Scores
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256
from fer_pipeline.core.seeds import derive


@dataclass(frozen=True)
class Candidates:
    """Every face that may be mined, pool after pool; `row` is its place in the pool's scores."""

    names: tuple[str, ...]
    identifiers: tuple[pa.ChunkedArray, ...]
    pool: Int64[np.ndarray, " n"]
    row: Int64[np.ndarray, " n"]
    label: Int64[np.ndarray, " n"]
    margin: Float32[np.ndarray, " n"]
    best: Float32[np.ndarray, " n"]
    excluded: tuple[int, ...]  # per pool, as the next two
    undirected: tuple[int, ...]
    faces: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.label)

    def face_ids(self, chosen: Int64[np.ndarray, " k"]) -> list[str]:
        """The identifiers of some candidates, in the order asked for."""
        found = np.empty(len(chosen), dtype=object)
        for number, column in enumerate(self.identifiers):
            mine = np.flatnonzero(self.pool[chosen] == number)
            found[mine] = take(column, self.row[chosen[mine]])
        return found.tolist()


def take(column: pa.ChunkedArray, rows: Int64[np.ndarray, " k"]) -> list[str]:
    """Some entries of a long column, chunk by chunk: the whole is never brought into memory."""
    found = np.empty(len(rows), dtype=object)
    start = 0
    for chunk in column.chunks:
        inside = np.flatnonzero((rows >= start) & (rows < start + len(chunk)))
        if len(inside):
            found[inside] = chunk.take(pa.array(rows[inside] - start)).to_pylist()
        start += len(chunk)
    return found.tolist()


def candidates_of(pools: Mapping[str, Scores], *, exclude: pa.Array) -> Candidates:
    """The candidates of all pools, in the order of the pools and their shards."""
    excluded, undirected, rows = [], [], []
    for scores in pools.values():
        listed = np.zeros(len(scores), bool)
        if len(exclude):
            listed = is_among(scores.face_id, exclude)
        excluded.append(int(listed.sum()))
        undirected.append(int((~scores.directed & ~listed).sum()))
        rows.append(np.flatnonzero(scores.directed & ~listed))
    together = list(zip(pools.values(), rows, strict=True))
    return Candidates(
        names=tuple(pools),
        identifiers=tuple(scores.face_id for scores in pools.values()),
        pool=np.repeat(np.arange(len(rows)), [len(part) for part in rows]).astype(np.int64),
        row=np.concatenate(rows).astype(np.int64),
        label=np.concatenate([scores.nearest[part] for scores, part in together]),
        margin=np.concatenate([scores.margin[part] for scores, part in together]),
        best=np.concatenate([scores.best[part] for scores, part in together]),
        excluded=tuple(excluded),
        undirected=tuple(undirected),
        faces=tuple(len(scores) for scores in pools.values()),
    )


def read_exclusions(path: Path | None, *, sha256: str | None = None) -> pa.Array:
    """The `face_id` column of a Parquet or CSV file, without repetitions; nothing where no file is named.

    The file must have the hash `sha256` where one is given.
    """
    if path is None:
        return pa.array([], pa.string())
    if sha256 is not None and path.is_file() and (found := file_sha256(path)) != sha256.lower():
        raise DataError(
            f"mine.exclude: {path} has sha256 {found}, but mine.exclude_sha256 is {sha256}; set it to what you mean"
        )
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
        else:
            as_text = pyarrow.csv.ConvertOptions(column_types={"face_id": pa.string()})
            table = pyarrow.csv.read_csv(path, convert_options=as_text)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"mine.exclude: {path} cannot be read ({' '.join(str(error).split())}); name a Parquet or CSV file"
        ) from None
    if "face_id" not in table.column_names:
        raise DataError(f"mine.exclude: {path} has no column face_id, it has {', '.join(table.column_names)}")
    return table.column("face_id").cast(pa.string()).drop_null().unique()


def random_faces(candidates: Candidates, *, number: int, seed: int) -> Int64[np.ndarray, " k"]:
    """`number` candidates drawn uniformly, by rising keyed hash of their identifier.

    The draw depends on the seed and on who is there, not on the order of the shards, and a pool that grows by a tenth
    keeps about nine tenths of it.
    """
    key = derive(seed, "mine", "random").to_bytes(8, "big")
    hashes = np.empty(len(candidates), np.uint64)
    for number_of_pool, column in enumerate(candidates.identifiers):
        mine = np.flatnonzero(candidates.pool == number_of_pool)
        start = 0
        for chunk in column.chunks:
            rows = candidates.row[mine]
            first, last = np.searchsorted(rows, [start, start + len(chunk)])
            names = chunk.take(pa.array(rows[first:last] - start)).to_pylist()
            digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8, key=key).digest() for name in names)
            hashes[mine[first:last]] = np.frombuffer(digests, dtype=">u8")
            start += len(chunk)
    return np.sort(np.argsort(hashes, kind="stable")[:number]).astype(np.int64)
