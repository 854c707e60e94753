"""Colours and signs of the page: recipes in, one colour and one marker each out.

The colours are those of Okabe and Ito (2008), told apart with every common kind of colour blindness; a recipe has the
colour of what it adds (mined blue, distilled vermilion, their controls the lighter kin) and a marker of its own, so
that no statement rests on colour alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from fer_pipeline.core.settings import ProjectSettings

INK, MUTED, RULE = "#1d2733", "#5b6675", "#d5dae1"
BLUE, SKY, VERMILION, ORANGE, GREEN, PURPLE, GREY = (
    "#0072b2",
    "#56b4e9",
    "#d55e00",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#5f6b7a",
)
OF_USE = {"labelled": GREY, "mined": BLUE, "random": SKY, "distilled": VERMILION, "random_real": ORANGE}
SPARE = (GREEN, PURPLE, "#8c6d1f", "#44427a", "#7a2e4d", "#2e6b6b")
MARKERS = "osD^vP*X<>"


@dataclass(frozen=True)
class Look:
    """How a recipe is drawn everywhere."""

    colour: str
    marker: str


def looks(world: ProjectSettings) -> dict[str, Look]:
    """A look for every recipe, in the order of the settings; the first of a kind takes the kind's colour."""
    found, spare, used = {}, list(SPARE), set()
    for index, (name, settings) in enumerate(world.recipes.items()):
        colour = OF_USE[settings.use]
        if colour in used:
            colour = spare[index % len(spare)]
        used.add(colour)
        found[name] = Look(colour, MARKERS[index % len(MARKERS)])
    return found


def series_colours(names: Iterable[str]) -> dict[str, str]:
    """Colours for things that are no recipes (pools, classes), in their order."""
    choices = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY, "#44427a", "#8c6d1f")
    return {name: choices[index % len(choices)] for index, name in enumerate(names)}
