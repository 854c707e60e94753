"""The results in a terminal: `reports/tables/results.csv` in, a table of text and the report's path out."""

import csv
from pathlib import Path

from fer_pipeline.core.errors import DataError


def table(reports: Path) -> str:
    """The results table with aligned columns, and where the whole report lies."""
    path = reports / "tables" / "results.csv"
    if not path.exists():
        raise DataError(f"{path} does not exist; run: dvc repro")
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(
        [lines[0], "  ".join("-" * width for width in widths), *lines[1:], "", f"report: {reports}/index.html"]
    )
