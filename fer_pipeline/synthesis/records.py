"""The world on disk: rows of drawn portraits in, `part-*.parquet` of data and one parquet of truth out.

Data and truth never share a file: no stage that learns reads the truth.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fer_pipeline.core.files import replacing
from fer_pipeline.synthesis.action_units import ORDER
from fer_pipeline.synthesis.sets import Row

DATA_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("subject", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)
TRUTH_SCHEMA = pa.schema(
    [
        pa.field("face_id", pa.string(), nullable=False),
        pa.field("dominant", pa.string()),  # null: no prototype dominates
        pa.field("kind", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("intensity", pa.float32(), nullable=False),
        pa.field(
            "aus", pa.list_(pa.float32(), 2 * len(ORDER)), nullable=False
        ),  # units in order, left and right of each
        pa.field("style", pa.string(), nullable=False),
        pa.field("pose", pa.list_(pa.float32(), 3), nullable=False),
        pa.field("frontal", pa.bool_(), nullable=False),
        pa.field(
            "landmarks", pa.list_(pa.float32(), 10), nullable=False
        ),  # x, y of the five points; pixel i covers i to i + 1
    ],
    metadata={"action_units": ",".join(map(str, ORDER))},
)


def data_table(rows: Sequence[Row]) -> pa.Table:
    """What the pipeline may see."""
    return pa.Table.from_pydict(
        {name: [getattr(row, name) for row in rows] for name in DATA_SCHEMA.names}, schema=DATA_SCHEMA
    )


def truth_table(rows: Sequence[Row], *, name: str) -> pa.Table:
    """What only the report may see; `face_id` is the id that alignment gives the face."""
    columns = {
        "face_id": [f"{name}/{row.sample_id}" for row in rows],
        "aus": [np.asarray(row.aus, np.float32).ravel() for row in rows],
        "landmarks": [np.asarray(row.landmarks, np.float32).ravel() for row in rows],
        "pose": [np.asarray(row.pose, np.float32) for row in rows],
    }
    plain = {field: [getattr(row, field) for row in rows] for field in TRUTH_SCHEMA.names if field not in columns}
    return pa.Table.from_pydict(
        {field: {**columns, **plain}[field] for field in TRUTH_SCHEMA.names}, schema=TRUTH_SCHEMA
    )


def part_path(folder: Path, number: int) -> Path:
    """Where a part of the data lies."""
    return folder / f"part-{number:05d}.parquet"


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a table whole or not at all, in row groups small enough to read one picture cheaply."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, row_group_size=100, compression="zstd")
