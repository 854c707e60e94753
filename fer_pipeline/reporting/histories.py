"""The course of every final training: `models/final/<recipe>/<seed>/history.csv` in, curves out."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fer_pipeline.core.errors import DataError
from fer_pipeline.reporting.charts import Line, lines
from fer_pipeline.reporting.palette import Look

History = dict[str, list[float]]


def read_histories(models: Path, recipes: Sequence[str], seeds: Sequence[int]) -> dict[str, list[History]]:
    """The histories of every recipe that was trained, one for each seed."""
    found = {}
    for recipe in recipes:
        paths = [models / recipe / str(seed) / "history.csv" for seed in seeds]
        histories = [_read(path) for path in paths if path.exists()]
        if histories:
            found[recipe] = histories
    return found


def training_loss(histories: Mapping[str, Sequence[History]]) -> str:
    """The column of the loss on the labelled faces: the first training column that every run has."""
    runs = [run for group in histories.values() for run in group]
    shared = (
        [name for name in runs[0] if name.startswith("train_") and all(name in run for run in runs)] if runs else []
    )
    return shared[0] if shared else ""


def chart(
    histories: Mapping[str, Sequence[History]], column: str, *, looks: Mapping[str, Look], ylabel: str, percent: bool
) -> bytes | None:
    """One curve a recipe over the steps, the mean over its seeds; None where no run has the column."""
    series = []
    for recipe, runs in histories.items():
        rows = [run for run in runs if column in run and "steps" in run]
        length = min((len(run[column]) for run in rows), default=0)
        if length:
            mean = np.mean([run[column][:length] for run in rows], axis=0).tolist()
            look = looks[recipe]
            series.append(Line(recipe, rows[0]["steps"][:length], mean, look.colour, marker=look.marker))
    return lines(series, xlabel="steps", ylabel=ylabel, percent=percent) if series else None


def _read(path: Path) -> History:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        return {name: [float(row[name] or "nan") for row in rows] for name in rows[0]} if rows else {}
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is no table of numbers ({error}); run: dvc repro train_final") from None
