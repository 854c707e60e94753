"""Numbers in, SVG pictures out: lines, bars and dots with intervals, narrow enough to be read on a phone.

The same numbers give the same bytes: no dates, a fixed salt for identifiers, text as outlines of the font that
Matplotlib ships. Matplotlib is imported when the first chart is drawn, because its import may build a cache of fonts.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fer_pipeline.reporting.palette import INK, MUTED, RULE

Axes = Any  # matplotlib.axes.Axes

WIDTH = 5.0  # inches; 480 CSS pixels, so that 9.5 point text stays legible when a phone shrinks it
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "fer_pipeline",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "text.parse_math": False,  # a name with dollar signs is a name
}


@dataclass(frozen=True)
class Figure:
    """A chart of the page: it lies in `reports/figures/<name>.svg` too."""

    name: str
    svg: bytes
    alt: str  # what a reader who cannot see it must know
    caption: str


def figure(name: str, svg: bytes | None, *, alt: str, caption: str) -> list[Figure]:
    """The figure as a list of one, empty where there was nothing to draw."""
    return [] if svg is None else [Figure(name, svg, alt, caption)]


@dataclass(frozen=True)
class Line:
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


@dataclass(frozen=True)
class Dot:
    """One value in a row, with an interval where there is one."""

    value: float
    low: float | None
    high: float | None
    colour: str
    marker: str
    label: str


def lines(
    series: Sequence[Line],
    *,
    xlabel: str,
    ylabel: str,
    percent: bool = False,
    logarithmic: bool = False,
    level: float | None = None,
    level_name: str = "",
    mark: float | None = None,
    mark_name: str = "",
    height: float = 2.9,
) -> bytes:
    """Curves over one axis; `level` draws a horizontal line to compare with, `mark` a vertical one."""

    def draw(axes: Axes) -> None:
        for one in series:
            label = None if one.faint else one.label
            width, strength = (0.7, 0.35) if one.faint else (1.6, 1.0)
            axes.plot(
                one.x,
                one.y,
                one.dashes,
                color=one.colour,
                marker=one.marker or None,
                markersize=4,
                label=label,
                linewidth=width,
                alpha=strength,
            )
            if one.low is not None and one.high is not None:
                axes.fill_between(one.x, one.low, one.high, color=one.colour, alpha=0.15, linewidth=0)
        if level is not None:
            axes.axhline(level, color=MUTED, linewidth=1, linestyle=":", label=level_name)
        if mark is not None:
            axes.axvline(mark, color=INK, linewidth=1, linestyle="--", label=mark_name)
        if logarithmic:
            axes.set_yscale("log")
            for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                formatted(_round_number)
        if percent:
            axes.yaxis.set_major_formatter(_whole_percent)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best")

    return picture(draw, height=height)


def _whole_percent(value: float, _: int | None = None) -> str:
    return f"{100 * value:.0f} %"


def _round_number(value: float, _: int | None = None) -> str:
    """1, 2 or 5 times a power of ten; the other ticks of a logarithm stay without words."""
    return f"{value:,.0f}" if value >= 1 and f"{value:e}"[0] in "125" else ""


def bars(rows: Sequence[tuple[str, float, str, str]], *, xlabel: str) -> bytes:
    """Horizontal bars: (name, value, colour, words at its end)."""

    def draw(axes: Axes) -> None:
        axes.grid(visible=False, axis="y")
        for index, (_, value, colour, words) in enumerate(rows):
            axes.barh(index, value, color=colour, height=0.62)
            axes.annotate(words, (value, index), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.22)
        axes.set_xlim(left=0)
        axes.set_xlabel(xlabel)

    return picture(draw, height=0.9 + 0.34 * max(1, len(rows)))


def dots(rows: Sequence[tuple[str, Sequence[Dot]]], *, xlabel: str, level: float | None = None) -> bytes:
    """One row a name, with dots and their intervals in percent, a little apart from each other."""

    def draw(axes: Axes) -> None:
        seen: set[str] = set()
        for index, (_, values) in enumerate(rows):
            for place, dot in enumerate(values):
                y = index + (place - (len(values) - 1) / 2) * 0.22
                if dot.low is not None and dot.high is not None:
                    axes.plot([dot.low, dot.high], [y, y], color=dot.colour, linewidth=1.4)
                label = None if dot.label in seen else dot.label
                seen.add(dot.label)
                axes.plot(dot.value, y, dot.marker, color=dot.colour, markersize=5.5, label=label, linestyle="none")
        if level is not None:
            axes.axvline(level, color=MUTED, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.xaxis.set_major_formatter(_whole_percent)
        axes.set_xlabel(xlabel)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)

    return picture(draw, height=1.2 + 0.42 * max(1, len(rows)))


def picture(draw: Callable[[Axes], None], *, height: float) -> bytes:
    """An SVG of one pair of axes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
        draw(canvas.add_subplot())
        stream = io.BytesIO()
        canvas.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return stream.getvalue()
