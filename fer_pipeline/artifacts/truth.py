"""Read `data/truth/<pool>.parquet`, what the faces of a drawn pool really show.

The report may, and `shard` for a control: the mined faces under their true labels, in a folder of their own.

Columns that are read: `face_id`, and `dominant`, the expression whose prototype dominates; a mixed face has none
(null), and whoever mines it under any label is wrong. `synthesize` writes these files, with the columns of
`synthesis/sets.py`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from fer_pipeline.artifacts.arrow import ParquetFile, required

SUFFIX = re.compile(r"#\d+$")  # align appends it where a picture gives several faces
MIXED = "mixed"
COLUMNS = required({"face_id": pa.string()}, remedy="run: dvc repro synthesize").append(
    pa.field("dominant", pa.string())
)


@dataclass(frozen=True)
class Truth:
    """The dominant expression of every face of the pools whose truth is known; None for a mixed face."""

    pools: dict[str, dict[str, str | None]]

    def label(self, pool: str, face_id: str) -> str:
        """Return the true expression, `MIXED` for a mixed face, "" where nothing is known."""
        labels = self.pools.get(pool, {})
        return next((labels[key] or MIXED for key in (face_id, SUFFIX.sub("", face_id)) if key in labels), "")

    def right(self, pool: str, face_id: str, label: str) -> bool | None:
        """Say whether a face shows `label`; None where nothing is known of it."""
        true = self.label(pool, face_id)
        return true == label if true else None


def read_truth(folder: Path, pools: Sequence[str]) -> Truth:
    """Read the truth of those pools that have one; a damaged file is a DataError."""
    paths = {pool: path for pool in pools if (path := folder / f"{pool}.parquet").exists()}
    tables = {
        pool: ParquetFile(path, COLUMNS, kind="table of face_id and dominant").read(COLUMNS.names)
        for pool, path in paths.items()
    }
    rows = {pool: table.to_pydict().values() for pool, table in tables.items()}
    return Truth({pool: dict(zip(*columns, strict=True)) for pool, columns in rows.items()})
