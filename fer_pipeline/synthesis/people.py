"""Draw the people of a demo set: identities whose traits stay the same in every portrait.

Lengths are in head units (half the width of a face at the cheekbones). The means follow common adult proportions
(eyes 63 mm apart on a face 135 mm wide, mouth 68 mm below the eyes), rounded; the spreads are ours. Resting traits such
as low brows or drooping mouth corners look like weak action units on purpose: that is what makes identity a nuisance.
"""

from dataclasses import dataclass, field, fields
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from pydantic import Field

from fer_pipeline.core.settings import Settings
from fer_pipeline.synthesis.expressions import Share

Colour = Float[np.ndarray, " 3"]

HAIR_STYLES = ("short", "side", "fringe", "curly", "long", "bun", "receding", "bald")
BEARDS = ("none", "stubble", "moustache", "goatee", "full")

_SKIN = np.array([[0.97, 0.83, 0.74], [0.93, 0.75, 0.63], [0.86, 0.66, 0.52],
                  [0.74, 0.53, 0.39], [0.57, 0.38, 0.27], [0.42, 0.28, 0.2]])  # fmt: skip
_HAIR = np.array([[0.07, 0.06, 0.06], [0.16, 0.1, 0.07], [0.3, 0.19, 0.12], [0.45, 0.26, 0.13], [0.74, 0.58, 0.36]])
_GREY_HAIR = np.array([0.6, 0.58, 0.56])
_IRIS = np.array([[0.2, 0.12, 0.07], [0.33, 0.2, 0.1], [0.3, 0.36, 0.22], [0.3, 0.44, 0.56], [0.42, 0.46, 0.48]])
_GLASSES = np.array([[0.05, 0.05, 0.06], [0.25, 0.14, 0.08], [0.5, 0.5, 0.52], [0.3, 0.05, 0.08]])


class Population(Settings):
    """From whom the people of a set are drawn."""

    spread: Annotated[float, Field(ge=0, le=2)] = 1.0  # of all lengths and resting traits
    skin: tuple[float, float] = (0.0, 1.0)  # light to dark
    age: tuple[float, float] = (0.0, 1.0)
    male: Share = 0.5
    beards: Share = 0.45  # of the men
    glasses: Share = 0.15
    hair: dict[str, float] = dict.fromkeys(HAIR_STYLES, 1.0)


def _trait(mean: float, deviation: float, *, men: float = 0.0) -> Any:
    """A field that is normally distributed; men lie `men` above the mean and women below."""
    return field(metadata={"distribution": (mean, deviation, men)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """One identity: lengths in head units, colours in 0 to 1, styles by name."""

    width: float = _trait(1.0, 0.035)
    jaw: float = _trait(0.79, 0.05, men=0.035)
    chin: float = _trait(0.43, 0.06, men=0.03)
    length: float = _trait(1.66, 0.06, men=0.03)
    eye_x: float = _trait(0.445, 0.02)
    eye_width: float = _trait(0.225, 0.014)
    eye_open: float = _trait(0.088, 0.013, men=-0.006)
    eye_tilt: float = _trait(0.018, 0.02)
    iris: float = _trait(0.1, 0.005)
    brow_y: float = _trait(-0.265, 0.025, men=0.015)
    brow_thick: float = _trait(0.058, 0.013, men=0.013)
    brow_arch: float = _trait(0.05, 0.022, men=-0.012)
    brow_tilt: float = _trait(0.0, 0.022)
    nose_length: float = _trait(0.6, 0.035)
    nose_width: float = _trait(0.225, 0.022, men=0.012)
    nose_height: float = _trait(0.3, 0.05, men=0.02)
    mouth_y: float = _trait(0.985, 0.035)
    mouth_width: float = _trait(0.37, 0.027, men=0.008)
    lip_upper: float = _trait(0.075, 0.016, men=-0.008)
    lip_lower: float = _trait(0.105, 0.02, men=-0.008)
    corner_rest: float = _trait(0.0, 0.02)
    brow_rest: float = _trait(0.0, 0.02)
    lid_rest: float = _trait(0.0, 0.09)
    cheeks: float = _trait(0.0, 0.5)
    age: float
    male: bool
    skin: Colour
    hair: Colour
    eyes: Colour
    lips: Colour
    hair_style: str
    hairline: float
    hair_volume: float
    beard: str
    glasses: int
    glasses_colour: Colour
    texture: int


_TRAITS = {trait.name: trait.metadata["distribution"] for trait in fields(Person) if trait.metadata}


def draw_person(rng: np.random.Generator, population: Population) -> Person:
    """Draws a person of a population; everything comes from `rng` alone."""
    male = bool(rng.random() < population.male)
    age = float(rng.uniform(*population.age))
    tone = float(rng.uniform(*population.skin))
    skin = _interpolate(_SKIN, tone) * rng.uniform(0.96, 1.03) + rng.normal(0, 0.012, 3)
    grey = np.clip((age - 0.55) * 2 + rng.normal(0, 0.2), 0, 1) if age > 0.5 else 0.0
    dark = rng.random() ** (0.6 + 2.5 * tone) * (1 - 0.8 * tone * tone)  # dark skin goes with dark hair and eyes
    hair = (1 - grey) * _interpolate(_HAIR, dark) + grey * _GREY_HAIR * rng.uniform(0.7, 1.25) * (1 - 0.35 * tone)
    lips = skin * np.array([0.86, 0.6, 0.6]) + np.array([0.06, 0.0, 0.02]) + rng.normal(0, 0.02, 3)
    if not male and rng.random() < 0.45:
        lips = 0.5 * lips + 0.5 * np.array([0.72, 0.16, 0.2]) * rng.uniform(0.8, 1.15)
    styles = list(population.hair)
    rates = {"long": 0.15, "bun": 0.15} if male else {"bald": 0.05, "receding": 0.05, "long": 2.0, "bun": 2.0}
    weights = np.array([population.hair[style] * rates.get(style, 1.0) for style in styles], np.float64)
    style = styles[int(rng.choice(len(styles), p=weights / weights.sum()))]
    bearded = male and rng.random() < population.beards
    mean, deviation, difference = np.array(list(_TRAITS.values())).T
    variation = np.clip(rng.standard_normal(len(_TRAITS)), -2.2, 2.2)
    traits = mean + (difference if male else -difference) + deviation * population.spread * variation
    return Person(
        **dict(zip(_TRAITS, traits.tolist(), strict=True)),
        age=age,
        male=male,
        skin=np.clip(skin, 0.05, 1.0),
        hair=np.clip(hair, 0.02, 1.0),
        eyes=np.clip(_interpolate(_IRIS, dark) * rng.uniform(0.85, 1.15), 0, 1),
        lips=np.clip(lips, 0.02, 1.0),
        hair_style=style,
        hairline=float(rng.normal(-0.92, 0.07)),
        hair_volume=float(rng.uniform(0.1, 0.26)),
        beard=str(rng.choice(BEARDS[1:])) if bearded else "none",
        glasses=int(rng.integers(1, 4)) if rng.random() < population.glasses else 0,
        glasses_colour=rng.choice(_GLASSES),
        texture=int(rng.integers(2**31)),
    )


def _interpolate(palette: Float[np.ndarray, "n 3"], position: float) -> Colour:
    """The colour at a position between 0 (first) and 1 (last of the palette)."""
    index = np.clip(position, 0, 1) * (len(palette) - 1)
    low = min(int(index), len(palette) - 2)
    return palette[low] + (index - low) * (palette[low + 1] - palette[low])
