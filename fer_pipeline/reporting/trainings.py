"""Read and draw what every final training cost and how it went (figure 5 of arXiv:2005.08551).

An epoch is once through all images that the recipe uses, so a recipe with ten times the images has ten times the steps;
all recipes take the same number of steps in all. The clock is the one thing here that no seed fixes; it stands apart
from the results and decides nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fer_pipeline.artifacts.history import HISTORY, read_history
from fer_pipeline.artifacts.timings import FIGURES, read_timings
from fer_pipeline.evaluation.statistics import Interval, mean_interval
from fer_pipeline.reporting.charts import Charts, Line, Look, bars, lines
from fer_pipeline.reporting.formatting import TIMES

History = list[dict[str, float]]
Histories = Mapping[str, Sequence[History]]  # by recipe, one a seed


class Timing(NamedTuple):
    """Seconds per epoch of a recipe over its seeds, and what an epoch is there."""

    recipe: str
    seconds: Interval
    seconds_per_step: float
    steps_per_epoch: float
    steps: float
    times_baseline: float | None


def load_timings(folder: Path, recipes: Sequence[str], *, baseline: str) -> list[Timing]:
    """Load the timings there are, in the order of the recipes."""
    timings = []
    rows = {name: read_timings(path) for name in recipes if (path := folder / f"{name}.json").exists()}
    seconds = {name: mean_interval([row["seconds_per_epoch"] for row in rows[name]]) for name in rows if rows[name]}
    base = seconds[baseline].mean if baseline in seconds else 0
    for name, interval in seconds.items():
        step, steps, total = (sum(row[key] for row in rows[name]) / len(rows[name]) for key in FIGURES[1:])
        timings.append(Timing(name, interval, step, steps, total, interval.mean / base if base > 0 else None))
    return timings


def load_histories(models: Path, recipes: Sequence[str], seeds: Sequence[int]) -> dict[str, list[History]]:
    """Load the histories of every recipe that was trained, one for each seed."""
    histories = {}
    for recipe in recipes:
        folders = [folder for seed in seeds if ((folder := models / recipe / str(seed)) / HISTORY).exists()]
        if folders:
            histories[recipe] = [read_history(folder) for folder in folders]
    return histories


def draw_trainings(timings: Sequence[Timing], histories: Histories, looks: Mapping[str, Look], loss: str) -> Charts:
    """Draw seconds per epoch, the validation figure and the training loss `loss` by recipe."""
    rows = []
    for timing in timings:
        ratio = "" if timing.times_baseline is None else f" ({timing.times_baseline:.1f}{TIMES})"
        text = f"{timing.seconds.mean:.2f} s{ratio}"
        rows.append((timing.recipe, timing.seconds.mean, looks[timing.recipe].colour, text))
    validation = _curves(histories, "validation_mean_class_accuracy", looks)
    return {
        "seconds_per_epoch": bars(rows, xlabel="seconds per epoch"),
        "validation": lines(validation, xlabel="steps", ylabel="mean class accuracy", percent=True),
        "training_loss": lines(_curves(histories, loss, looks), xlabel="steps", ylabel="training loss"),
    }


def find_loss(histories: Histories) -> str:
    """Return the column of the loss on the labelled faces: the first training column that every run has."""
    runs = [run[0] if run else {} for group in histories.values() for run in group]
    names = [name for name in runs[0] if name.startswith("train_")] if runs else []
    return next((name for name in names if all(name in run for run in runs)), "")


def _curves(histories: Histories, column: str, looks: Mapping[str, Look]) -> list[Line]:
    """One curve a recipe over the steps, the mean over those of its seeds that have the column."""
    curves = []
    for recipe, runs in histories.items():
        runs = [run for run in runs if run and column in run[0] and "steps" in run[0]]
        if runs:
            shortest = min(map(len, runs))
            mean = np.mean([[row[column] for row in run[:shortest]] for run in runs], axis=0).tolist()
            steps = [row["steps"] for row in runs[0][:shortest]]
            curves.append(Line(recipe, steps, mean, looks[recipe].colour, marker=looks[recipe].marker))
    return curves
