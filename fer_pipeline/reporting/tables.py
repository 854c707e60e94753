"""Rows in, CSV files out: every number of the page lies in `reports/tables` too, unrounded to the page's digits."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from fer_pipeline.core.files import write_text
from fer_pipeline.evaluation.statistics import Interval
from fer_pipeline.reporting.numbers import plain

FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows with one set of keys; nothing where there is no row."""
    if not rows:
        return
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        assert row.keys() == rows[0].keys(), f"{path.name}: rows with different columns"
        writer.writerow([_cell(value) for value in row.values()])
    write_text(path, stream.getvalue())


def ends(name: str, interval: Interval) -> dict[str, float | None]:
    """The two columns of an interval."""
    return {f"{name}_low": interval.low, f"{name}_high": interval.high}


def _cell(value: object) -> str:
    text = plain(value)
    # A spreadsheet would run a name that begins like a formula.
    return "'" + text if isinstance(value, str) and text.startswith(FORMULA) else text
