"""Differences in, a forest plot for the page out: places in percent of its width, ticks at round numbers.

It is drawn with HTML and CSS and not as a picture, so that its words keep their size on a phone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fer_pipeline.evaluation.statistics import Interval
from fer_pipeline.reporting.numbers import points, span
from fer_pipeline.reporting.palette import Look
from fer_pipeline.reporting.results import ALL, Difference

STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Row:
    """One difference: its place, its interval's place, and its words."""

    recipe: str
    colour: str
    dot: float
    left: float
    width: float
    words: str
    has_interval: bool
    spoken: str


@dataclass(frozen=True)
class Group:
    """The rows of one target."""

    target: str
    is_all: bool
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Tick:
    """One round number of the scale."""

    place: float
    words: str
    is_zero: bool


@dataclass(frozen=True)
class Forest:
    """The whole plot; the mean over all targets stands first."""

    groups: tuple[Group, ...]
    ticks: tuple[Tick, ...]


def forest(rows: Sequence[Difference], looks: Mapping[str, Look]) -> Forest | None:
    """The plot of some differences; None where there are none."""
    if not rows:
        return None
    ends = [value for row in rows for value in _ends(row.over_seeds)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    step = next((step for step in STEPS if (high - low) / step <= 6), STEPS[-1])
    low, high = math.floor(low / step - 0.2) * step, math.ceil(high / step + 0.2) * step
    targets = sorted({row.target: None for row in rows}, key=lambda target: target != ALL)
    groups = tuple(
        Group(target, target == ALL, tuple(_row(row, looks, low, high) for row in rows if row.target == target))
        for target in targets
    )
    ticks = []
    for index in range(round((high - low) / step) + 1):
        value = low + index * step
        ticks.append(Tick(_place(value, low, high), points(value, _digits(step)), abs(value) < step / 2))
    return Forest(groups, tuple(ticks))


def _row(row: Difference, looks: Mapping[str, Look], low: float, high: float) -> Row:
    interval = row.over_seeds
    first, last = min(_ends(interval)), max(_ends(interval))
    has_interval = interval.low is not None
    words = points(interval.mean) + (f" ({span(interval, signed=True)})" if has_interval else "")
    left = _place(first, low, high)
    return Row(
        recipe=row.recipe,
        colour=looks[row.recipe].colour,
        dot=_place(interval.mean, low, high),
        left=left,
        width=round(_place(last, low, high) - left, 2),
        words=words,
        has_interval=has_interval,
        spoken=f"{row.recipe} minus {row.against} on {row.target}: {words} points",
    )


def _ends(interval: Interval) -> list[float]:
    return [value for value in (interval.low, interval.mean, interval.high) if value is not None]


def _place(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2)


def _digits(step: float) -> int:
    return 0 if step >= 0.01 else 1
