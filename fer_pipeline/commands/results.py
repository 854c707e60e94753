"""The results in a terminal: `reports/tables` in; a table of text, the gains and the report's path out."""

import csv
from collections.abc import Sequence
from pathlib import Path

from fer_pipeline.core.errors import DataError

FIGURES = {"mean_class_accuracy": "mean class accuracy", "accuracy": "accuracy", "macro_f1": "macro-F1"}


def table(reports: Path) -> str:
    """Every recipe on every target with its interval over seeds, the paired gains, and where the report lies."""
    results = _read(reports / "tables" / "results.csv")
    head = ["recipe", "target", "faces", "seeds", *FIGURES.values(), "sd over classes"]
    rows = [
        [
            *(row[key] for key in ("recipe", "target", "faces", "seeds")),
            *(_with_interval(row, key, f"{key}_seeds") for key in FIGURES),
            f"{float(row['class_accuracy_sd']):.3f}",
        ]
        for row in results
    ]
    lines = _aligned([head, *rows])
    if gains := _read(reports / "tables" / "differences.csv"):
        against = gains[0]["against"]  # the first rows are against the baseline
        lines += ["", f"mean class accuracy minus that of {against}, paired over seeds"]
        lines += _aligned(
            [
                ["recipe", "target", "difference"],
                *(
                    [row["recipe"], row["target"], _with_interval(row, "difference", "seeds", sign="+")]
                    for row in gains
                    if row["against"] == against and row["metric"] == "mean_class_accuracy"
                ),
            ]
        )
    return "\n".join([*lines, "", "intervals: 95 %, over seeds", f"report: {reports}/index.html"])


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        raise DataError(f"{path} does not exist; run: dvc repro")
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _with_interval(row: dict[str, str], key: str, ends: str, *, sign: str = "") -> str:
    low, high = row[f"{ends}_low"], row[f"{ends}_high"]
    told = f"{float(row[key]):{sign}.3f}"
    return f"{told} [{float(low):{sign}.3f}, {float(high):{sign}.3f}]" if low and high else told


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]
