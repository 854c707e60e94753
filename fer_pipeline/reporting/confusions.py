"""Confusions in, shaded tables for the page out: a table stays sharp, selectable and readable aloud."""

from dataclasses import dataclass

import numpy as np

from fer_pipeline.reporting.numbers import percent, span
from fer_pipeline.reporting.palette import BLUE, VERMILION
from fer_pipeline.reporting.results import Result
from fer_pipeline.reporting.tables import ends

STRONGEST = 0.72  # of the full colour, so that dark words keep a contrast of 4.5 on every shade


@dataclass(frozen=True)
class Cell:
    """One share, its colour, and its interval in words."""

    words: str
    background: str
    title: str


@dataclass(frozen=True)
class Confusion:
    """The confusion of one recipe on one target; rows of classes that the target lacks are None."""

    recipe: str
    target: str
    classes: tuple[str, ...]
    rows: tuple[tuple[Cell, ...] | None, ...]


def confusion(result: Result) -> Confusion:
    """Shares of the actual class, summed over the seeds."""
    classes = result.predictions.classes
    rows = []
    for actual, name in enumerate(classes):
        present = result.first.supports[name] > 0
        rows.append(tuple(_cell(result, actual, k) for k in range(len(classes))) if present else None)
    return Confusion(result.recipe, result.target, classes, tuple(rows))


def confusion_rows(result: Result) -> list[dict[str, object]]:
    """The rows of the CSV: every cell with its count, its share and the share's interval over the test faces."""
    classes, counts = result.predictions.classes, result.predictions.confusions.sum(0)
    found = []
    for actual, name in enumerate(classes):
        for k, other in enumerate(classes if result.first.supports[name] else ()):
            cell = result.cell(actual, k)
            place = {"recipe": result.recipe, "target": result.target, "actual": name, "predicted": other}
            found.append({**place, "count": int(counts[actual, k]), "share": cell.mean, **ends("share", cell)})
    return found


def _cell(result: Result, actual: int, predicted: int) -> Cell:
    interval = result.cell(actual, predicted)
    share = float(np.clip(interval.mean, 0, 1))
    classes = result.predictions.classes
    title = f"{classes[actual]} taken for {classes[predicted]}: {percent(share)} % ({span(interval)})"
    background = _mixed(BLUE if actual == predicted else VERMILION, share)
    return Cell(percent(share, 0), background, title)


def _mixed(colour: str, share: float) -> str:
    """White at 0, the strongest shade of the colour at 1."""
    parts = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return "#" + "".join(f"{round(255 + (part - 255) * share * STRONGEST):02x}" for part in parts)
