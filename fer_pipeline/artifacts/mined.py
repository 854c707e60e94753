"""Read and write what was mined: `data/mined/{mined.parquet, random.parquet, summary.json, sweep.parquet}`.

`mined.parquet` has one row a face that passed the margin rule: `face_id`, `pool`, `label` (the pseudo-label), `cosine`
to its centroid, `margin`, and `rank` in its class over all pools, from 1, nearest to the centroid first; rows stand in
order of class and rank. `random.parquet` has the same columns for as many faces drawn at random from the same pools,
whose label is their nearest class whatever the margin. `sweep.parquet` has a row for each margin and class: `margin`,
`class` ("*" for all together), `kept`, `heldout`, `precision`, `low`, `high` (null without held-out faces).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, Int64

from fer_pipeline.artifacts.faces import image_schema, open_shard
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json, refuse_damage

MINED, RANDOM, SUMMARY, SWEEP = "mined.parquet", "random.parquet", "summary.json", "sweep.parquet"
ALL_CLASSES = "*"
SWEEP_COLUMNS = ("margin", "class", "kept", "heldout", "precision", "low", "high")
MINED_COLUMNS = {
    "face_id": pa.string(),
    "pool": pa.string(),
    "label": pa.int64(),
    "cosine": pa.float32(),
    "margin": pa.float32(),
    "rank": pa.int64(),
}


def mined_schema(classes: Sequence[str]) -> pa.Schema:
    """Returns the schema of mined and of random faces."""
    return image_schema([pa.field(name, kind) for name, kind in MINED_COLUMNS.items()], classes)


def read_rows(folder: Path, name: str, *, classes: Sequence[str]) -> pa.Table:
    """Reads `mined.parquet` or `random.parquet`; other classes than asked for are a DataError."""
    path = folder / name
    if not path.is_file():
        raise DataError(f"{path} does not exist; run mine (dvc repro)")
    table = open_shard(path).read()
    expected = mined_schema(classes)
    if table.schema.metadata != expected.metadata or table.schema.names != expected.names:
        raise DataError(f"{path} was mined with other classes or columns than {', '.join(classes)}; rerun mine")
    return table


def read_summary(folder: Path) -> dict[str, Any]:
    """Reads the rule, the margins, counts and estimated precisions."""
    return read_json(folder / SUMMARY)


def sweep_table(
    classes: Sequence[str],
    *,
    margin: Float64[np.ndarray, " t"],
    kept: Int64[np.ndarray, "t c"],
    heldout: Int64[np.ndarray, "t c"],
    interval: Float64[np.ndarray, "t c 3"],
    overall: Float64[np.ndarray, "t 3"],
) -> pa.Table:
    """Builds the sweep with one row for each margin and class; NaN becomes null."""
    names = [ALL_CLASSES, *classes]
    counts = [np.concatenate([part.sum(axis=1, keepdims=True), part], axis=1).ravel() for part in (kept, heldout)]
    precisions = np.concatenate([overall[:, None], interval], axis=1).reshape(-1, 3)
    return pa.table(
        {
            "margin": pa.array(np.repeat(margin, len(names)), pa.float64()),
            "class": pa.array(names * len(margin), pa.string()),
            "kept": pa.array(counts[0], pa.int64()),
            "heldout": pa.array(counts[1], pa.int64()),
            **{
                name: pa.array(precisions[:, i], pa.float64(), from_pandas=True)
                for i, name in enumerate(("precision", "low", "high"))
            },
        }
    )


def read_sweep(folder: Path) -> pa.Table | None:
    """Read `sweep.parquet`, None where there is none; a damaged file is a DataError."""
    path = folder / SWEEP
    with refuse_damage(path, "cannot be read", "run: dvc repro mine"):
        return pq.read_table(path, columns=list(SWEEP_COLUMNS)) if path.exists() else None
