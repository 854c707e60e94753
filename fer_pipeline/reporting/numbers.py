"""Figures in, the words of the page out: percent with one decimal, points with a sign, intervals, counts."""

import math

from fer_pipeline.evaluation.statistics import Interval

NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 as percent, without the sign %."""
    return NONE if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}"


def points(share: float | None, digits: int = 1) -> str:
    """A difference of shares as percentage points, always with its sign."""
    if share is None or not math.isfinite(share):
        return NONE
    rounded = f"{abs(100 * share):.{digits}f}"
    sign = "" if float(rounded) == 0 else "+" if share > 0 else MINUS
    return sign + rounded


def plus_minus(interval: Interval) -> str:
    """`71.3 ± 1.2`, or the mean alone where there is no interval."""
    half = interval.half_width
    return percent(interval.mean) if half is None else f"{percent(interval.mean)} ± {percent(half)}"


def span(interval: Interval, *, signed: bool = False) -> str:
    """`0.4 to 3.8`, the ends of an interval."""
    form = points if signed else percent
    return NONE if interval.low is None or interval.high is None else f"{form(interval.low)} to {form(interval.high)}"


def count(value: float | None) -> str:
    """A whole number with separators."""
    return NONE if value is None else f"{round(value):,}"


def plural(number: int, noun: str, many: str = "") -> str:
    """`1 seed`, `5 seeds`."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def listing(words: list[str] | tuple[str, ...]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def visible(text: str) -> str:
    """A name from outside with its control and direction characters made visible; the template escapes the rest."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def plain(value: object) -> str:
    """A cell of a CSV file: shares with six digits, nothing for what is missing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.6f}" if isinstance(value, float) else str(value)
