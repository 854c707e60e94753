"""Rows of `predict`, written as they come: batches of rows in, one Parquet or CSV file out, whole or not at all.

One row a face: `image` (path below the folder), `face` (0 is the most certain), box `x1 y1 x2 y2` and five landmarks in
pixels of the upright picture, `score`, `predicted`, `p_<class>`. A picture without a face has one row with a `reason`.
"""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.files import replacing

Row = dict[str, Any]
BOX = ("x1", "y1", "x2", "y2")
POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
LANDMARKS = tuple(f"{point}_{axis}" for point in POINTS for axis in "xy")


class RowWriter(Protocol):
    """Takes rows in order."""

    def write(self, rows: Sequence[Row]) -> None:
        """Adds rows to the file."""


def schema(classes: Sequence[str]) -> pa.Schema:
    """The columns, in order."""
    numbers = [*BOX, "score", *LANDMARKS]
    return pa.schema(
        [
            pa.field("image", pa.string()),
            pa.field("face", pa.int32()),
            *(pa.field(name, pa.float32()) for name in numbers),
            pa.field("predicted", pa.string()),
            *(pa.field(f"p_{name}", pa.float32()) for name in classes),
            pa.field("reason", pa.string()),
        ]
    )


@contextmanager
def writing(out: Path, classes: Sequence[str]) -> Iterator[RowWriter]:
    """A writer for `out`, by its extension; the file appears when all rows are written."""
    check_extension(out)
    with replacing(out) as temporary:
        if out.suffix.lower() == ".csv":
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                yield _CsvRows(stream, schema(classes))
        else:
            with pq.ParquetWriter(temporary, schema(classes), compression="zstd") as writer:
                yield _ParquetRows(writer)


def check_extension(out: Path) -> None:
    """Refuses a file that is neither Parquet nor CSV."""
    if out.suffix.lower() not in (".parquet", ".csv"):
        raise ConfigError(f"--out {out} must end in .parquet or .csv")


class _ParquetRows:
    def __init__(self, writer: pq.ParquetWriter) -> None:
        self.writer = writer

    def write(self, rows: Sequence[Row]) -> None:
        if rows:
            self.writer.write_table(pa.Table.from_pylist(list(rows), schema=self.writer.schema))


class _CsvRows:
    def __init__(self, stream: Any, columns: pa.Schema) -> None:
        self.writer = csv.DictWriter(stream, fieldnames=columns.names, restval="", lineterminator="\n")
        self.single = {field.name for field in columns if pa.types.is_float32(field.type)}
        self.writer.writeheader()

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.writer.writerow(
                {name: f"{value:.9g}" if name in self.single else value for name, value in row.items()}
            )
