"""One chart with the words that belong to it."""

from dataclasses import dataclass


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
