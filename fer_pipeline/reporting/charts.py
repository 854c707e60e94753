"""Draw lines, bars and dots with intervals as SVG pictures that stay legible on a phone, and colour the recipes.

The same numbers give the same bytes: no dates, a fixed salt for identifiers, text as outlines of the font that
Matplotlib ships. Matplotlib is imported when the first chart is drawn, because its import may build a cache of fonts.

The colours are those of Okabe and Ito (2008), distinguishable with every common kind of colour blindness; every recipe
has a marker of its own too, so that no statement rests on colour alone.
"""

import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fer_pipeline.evaluation.statistics import Interval

Axes = Any  # matplotlib.axes.Axes
Guide = tuple[float, str]  # a place on an axis and the name of the line drawn there
Charts = dict[str, bytes | None]  # SVG by the name of its file, None where there is nothing to draw

INK, MUTED = "#1d2733", "#5b6675"
BLUE, SKY, VERMILION, ORANGE = "#0072b2", "#56b4e9", "#d55e00", "#e69f00"
GREEN, PURPLE, GREY = "#009e73", "#cc79a7", "#5f6b7a"
HUES = (  # of a recipe, and of its control
    (BLUE, SKY),
    (VERMILION, ORANGE),
    (GREEN, "#7fcdb6"),
    (PURPLE, "#7a2e4d"),
    ("#8c6d1f", "#c9b26f"),
    ("#44427a", "#9f9dcb"),
)
SERIES = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY, "#44427a", "#8c6d1f")
MARKERS = "osD^vP*X<>"
WIDTH = 5.0  # inches; 480 CSS pixels, so that 9.5 point text stays legible when a phone shrinks it
COLUMNS = 3  # of a legend above the axes
MARKED = 25  # points of a curve that have a marker
STYLE = Path(__file__).parent / "templates" / "charts.mplstyle"


class Look(NamedTuple):
    """How a recipe is drawn everywhere."""

    colour: str
    marker: str


class Line(NamedTuple):
    """One curve, with a band where `low` and `high` are given."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dashes: str = "-"
    marker: str = ""
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    faint: bool = False


Mark = tuple[Interval, Look, str]  # one value in a row, how it is drawn, and its name


def choose_looks(recipes: Sequence[str], *, baseline: str, controls: Mapping[str, str]) -> dict[str, Look]:
    """Give every recipe a marker and a colour: the baseline is grey, a control a neighbour of what it controls for."""
    colours, hues = {baseline: GREY}, itertools.cycle(HUES)
    for recipe in sorted(recipes, key=lambda name: name in controls.values()):
        if recipe not in colours:
            colours[recipe], neighbour = next(hues)
            if recipe in controls:
                colours.setdefault(controls[recipe], neighbour)
    return {name: Look(colours[name], MARKERS[index % len(MARKERS)]) for index, name in enumerate(recipes)}


def series_colours(names: Iterable[str]) -> dict[str, str]:
    """Give colours to things that are no recipes (pools, classes), in their order."""
    return dict(zip(names, itertools.cycle(SERIES), strict=False))


def lines(
    series: Sequence[Line],
    *,
    xlabel: str,
    ylabel: str,
    percent: bool = False,
    logarithmic: bool = False,
    logarithmic_x: bool = False,
    level: Guide | None = None,
    mark: Guide | None = None,
    height: float = 2.9,
    legend_above: bool = False,
) -> bytes | None:
    """Draw curves, None where there are none; `level` adds a horizontal line to compare with, `mark` a vertical one."""

    def draw(axes: Axes) -> None:
        for line in series:
            width, alpha, label = (0.7, 0.35, None) if line.faint else (1.6, 1.0, line.label)
            every = math.ceil(len(line.x) / MARKED)
            look = {"color": line.colour, "marker": line.marker or None, "markersize": 4, "markevery": every}
            axes.plot(line.x, line.y, line.dashes, **look, label=label, linewidth=width, alpha=alpha)
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.15, linewidth=0)
        if level is not None:
            axes.axhline(level[0], color=MUTED, linewidth=1, linestyle=":", label=level[1])
        if mark is not None:
            axes.axvline(mark[0], color=INK, linewidth=1, linestyle="--", label=mark[1])
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set(major_formatter=_round_number, minor_formatter=_round_number)
        if logarithmic_x:
            axes.set_xscale("log")
            axes.xaxis.set(
                major_formatter=_round_number, minor_formatter="" if _spans_decades(series) else _round_number
            )
        if percent:
            axes.yaxis.set_major_formatter(_whole_percent)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if axes.get_legend_handles_labels()[0]:
            above = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": COLUMNS, "borderaxespad": 0.2}
            above |= {"columnspacing": 1.0, "handlelength": 1.4}
            axes.legend(**above if legend_above else {"loc": "best"})

    rows = math.ceil(len(series) / COLUMNS) if legend_above else 0
    return picture(draw, height=height + 0.17 * rows) if series else None


def _whole_percent(value: float, _: int | None = None) -> str:
    return f"{100 * value:.0f} %"


def _round_number(value: float, _: int | None = None) -> str:
    """1, 2 or 5 times a power of ten; the other ticks of a logarithm have no label."""
    return f"{value:,.0f}" if value >= 1 and f"{value:e}"[0] in "125" else ""


def _spans_decades(series: Sequence[Line]) -> bool:
    """Whether only powers of ten have room below the axis."""
    places = [place for line in series for place in line.x if place > 0]
    return bool(places) and max(places) > 100 * min(places)


def bars(rows: Sequence[tuple[str, float, str, str]], *, xlabel: str) -> bytes | None:
    """Draw horizontal bars, (name, value, colour, text at its end); None where there are none."""

    def draw(axes: Axes) -> None:
        axes.grid(visible=False, axis="y")
        for index, (_, value, colour, text) in enumerate(rows):
            axes.barh(index, value, color=colour, height=0.62)
            axes.annotate(text, (value, index), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.22)
        axes.set_xlim(left=0)
        axes.set_xlabel(xlabel)

    return picture(draw, height=0.9 + 0.34 * len(rows)) if rows else None


def dots(rows: Sequence[tuple[str, Sequence[Mark]]], *, xlabel: str) -> bytes | None:
    """Draw one row a name, with dots and their intervals in percent a little apart; None where there is no row."""

    def draw(axes: Axes) -> None:
        labels: set[str] = set()
        for index, (_, marks) in enumerate(rows):
            for place, (interval, (colour, marker), name) in enumerate(marks):
                y = index + (place - (len(marks) - 1) / 2) * 0.22
                if interval.low is not None and interval.high is not None:
                    axes.plot([interval.low, interval.high], [y, y], color=colour, linewidth=1.4)
                label = None if name in labels else name
                labels.add(name)
                axes.plot(interval.mean, y, marker, color=colour, markersize=5.5, label=label, linestyle="none")
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.xaxis.set_major_formatter(_whole_percent)
        axes.set_xlabel(xlabel)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)

    return picture(draw, height=1.2 + 0.42 * len(rows)) if rows else None


def picture(draw: Callable[[Axes], None], *, height: float) -> bytes:
    """Return an SVG of one pair of axes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context(fname=STYLE):
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
        draw(canvas.add_subplot())
        stream = io.BytesIO()
        canvas.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return stream.getvalue()
