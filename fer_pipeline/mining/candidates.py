"""Collect the faces of all pools that may be mined, and draw random ones from them for comparison.

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
from jaxtyping import Float32, Int64, UInt64

from fer_pipeline.artifacts.arrow import is_among
from fer_pipeline.artifacts.scores import Scores
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256
from fer_pipeline.core.seeds import derive


@dataclass(frozen=True)
class Candidates:
    """Every face that may be mined, pool after pool; `row` is its place in the pool's scores, which rises in a pool."""

    identifiers: Mapping[str, pa.ChunkedArray]  # of all faces of a pool, by its name
    counts: Mapping[str, dict[str, int]]  # of all faces of a pool, of those excluded and of those without a direction
    pool: Int64[np.ndarray, " n"]
    row: Int64[np.ndarray, " n"]
    label: Int64[np.ndarray, " n"]
    margin: Float32[np.ndarray, " n"]
    best: Float32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.label)

    def face_ids(self, chosen: Int64[np.ndarray, " k"]) -> list[str]:
        """Returns the identifiers of some candidates, given in rising order, without loading a whole pool."""
        names: list[str] = []
        for pool, column in enumerate(self.identifiers.values()):
            mask = np.zeros(len(column), bool)
            mask[self.row[chosen[self.pool[chosen] == pool]]] = True
            names += column.filter(pa.array(mask)).to_pylist()
        return names


def collect_candidates(pools: Mapping[str, Scores], *, exclude: pa.Array) -> Candidates:
    """Collects the candidates of all pools, in the order of the pools and their shards."""
    counts, rows = {}, []
    for name, scores in pools.items():
        excluded = is_among(scores.face_id, exclude)
        rows.append(np.flatnonzero(scores.directed & ~excluded))
        counts[name] = {
            "faces": len(scores),
            "excluded": int(excluded.sum()),
            "no_direction": int((~scores.directed & ~excluded).sum()),
        }
    together = list(zip(pools.values(), rows, strict=True))
    return Candidates(
        identifiers={name: scores.face_id for name, scores in pools.items()},
        counts=counts,
        pool=np.repeat(np.arange(len(rows)), [len(part) for part in rows]),
        row=np.concatenate(rows),
        label=np.concatenate([scores.nearest[part] for scores, part in together]),
        margin=np.concatenate([scores.margin[part] for scores, part in together]),
        best=np.concatenate([scores.best[part] for scores, part in together]),
    )


def read_exclusions(path: Path | None, *, sha256: str | None = None) -> pa.Array:
    """Reads the distinct `face_id`s of a Parquet or CSV file; none where no file is named.

    The file must have the hash `sha256` where one is given.
    """
    if path is None:
        return pa.array([], pa.string())
    if sha256 is not None and path.is_file() and (digest := file_sha256(path)) != sha256.lower():
        raise DataError(
            f"mine.exclude: {path} has sha256 {digest}, but mine.exclude_sha256 is {sha256}; set it to what you mean"
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
    """Draws `number` candidates uniformly, by rising keyed hash of their identifier, and returns them in their order.

    The draw depends on the seed and on who is there, not on the order of the shards, and a pool that grows by a tenth
    keeps about nine tenths of it.
    """
    key = derive(seed, "mine", "random").to_bytes(8, "big")

    def hash_names(names: pa.StringArray) -> UInt64[np.ndarray, " _"]:
        digests = (hashlib.blake2b(name.encode(), digest_size=8, key=key).digest() for name in names.to_pylist())
        return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)

    hashes = [np.empty(0, np.uint64)]
    for pool, column in enumerate(candidates.identifiers.values()):
        all_hashes = np.concatenate([np.empty(0, np.uint64), *(hash_names(chunk) for chunk in column.chunks)])
        hashes.append(all_hashes[candidates.row[candidates.pool == pool]])
    return np.sort(np.argsort(np.concatenate(hashes), kind="stable")[:number])
