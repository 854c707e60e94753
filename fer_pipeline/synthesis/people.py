"""Draw the people of a demo set and what their faces show.

Identities keep their traits in every portrait. Lengths are in head units (half the width of a face at the cheekbones).
The means follow common adult proportions (eyes 63 mm apart on a face 135 mm wide, mouth 68 mm below the eyes), rounded;
the spreads are ours. Resting traits such as low brows or drooping mouth corners look like weak action units on purpose:
that is what makes identity a nuisance.

Source of the prototypes: Ekman and Friesen, EMFACS-7 (1983), and Ekman, Friesen and Hager, FACS Investigator's Guide
(2002), table 10-1, in the common short form: anger 4+5+7+23, disgust 9+15+16, fear 1+2+4+5+20+26, happiness 6+12,
sadness 1+4+15, surprise 1+2+5B+26, contempt R12A+R14A, neutral none.
Differences: FACS' five letters A to E become a number between 0 and 1, and a prototype keeps the ratio of its units at
any intensity; contempt's one-sided units are drawn stronger than A, which would be less than a pixel here. `COMPANIONS`
are units that the guide's variants often add (the open-mouthed smile 6+12+25, the pressed anger 4+7+24 and others).

A performance is of one of four kinds: `prototype` (one expression, clearly shown), `weak` (one, faint), `mixed` (a
blend of two) and `other` (speech, wink, blow, yawn, … : units that are no prototype). Its truth is `dominant`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from pydantic import Field

from fer_pipeline.core.documents import read_yaml
from fer_pipeline.core.settings import Settings

Kind = Literal["other", "mixed", "weak", "prototype"]
Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[Share, Share]
Activation = Float[np.ndarray, "units 2"]  # one row a unit in `ORDER`; columns: left and right in the frontal picture

_TABLES = read_yaml(Path(__file__).with_name("expressions.yaml"))
UNITS: dict[int, str] = _TABLES["units"]
ORDER: tuple[int, ...] = tuple(UNITS)
PROTOTYPES: dict[str, dict[int, float]] = _TABLES["prototypes"]
COMPANIONS: dict[str, dict[int, list[float]]] = _TABLES["companions"]
_ROW = {unit: row for row, unit in enumerate(ORDER)}

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


def activation(units: Mapping[int, float], *, side: int | None = None) -> Activation:
    """Returns action units by number as an array, on both sides or on one (0 left in the picture, 1 right)."""
    aus = np.zeros((len(ORDER), 2), np.float32)
    columns = slice(None) if side is None else side
    for unit, strength in units.items():
        aus[_ROW[unit], columns] = strength
    return aus


def prototype(expression: str, intensity: float, *, side: int = 1) -> Activation:
    """Returns a basic expression's units at an intensity between 0 and 1, one-sided expressions on `side`."""
    units = {unit: strength * intensity for unit, strength in PROTOTYPES[expression].items()}
    return activation(units, side=side if expression in _TABLES["one_sided"] else None)


class Units:
    """Reads an activation by unit number: `units[12]` is the pair left, right; `units.mean(26)` one number."""

    def __init__(self, aus: Activation) -> None:
        self._aus = aus

    def __getitem__(self, unit: int) -> Float[np.ndarray, " 2"]:
        return self._aus[_ROW[unit]]

    def mean(self, unit: int) -> float:
        """Returns the unit's mean over both sides, for what lies on the midline."""
        return float(self._aus[_ROW[unit]].mean())


class Acting(Settings):
    """How clearly a set's people show what they feel; shares that are left over are prototypes."""

    weak: Share = 0.0
    mixed: Share = 0.0
    other: Share = 0.0
    intensity: Range = (0.55, 1.0)  # of prototypes, and of the stronger part of a blend
    weak_intensity: Range = (0.08, 0.4)
    unit_spread: Share = 0.15  # relative, of each unit on its own
    asymmetry: Share = 0.1
    companions: Share = 1.0  # scales how often the variants' further units join
    stray: Share = 0.06  # strength of chance units, also in a neutral face
    visible: Share = 0.3  # the truth's rule: see `dominant`
    faint: Share = 0.12
    clear: Annotated[float, Field(ge=1)] = 2.0


@dataclass(frozen=True)
class Performance:
    """One performed expression and the truth about it."""

    kind: Kind
    detail: str  # the expressions of a blend, or what an `other` face does
    aus: Activation
    dominant: str | None
    intensity: float  # of the strongest prototype; 0 for neutral and for `other`


def dominant(weights: Mapping[str, float], acting: Acting) -> str | None:
    """Returns the dominant prototype of a blend, or None.

    Neutral if nothing reaches `faint`; else the strongest if it reaches `visible` and is at least `clear` times as
    strong as the second; else none.
    """
    ranked = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
    strongest = ranked[0][1] if ranked else 0.0
    if strongest < acting.faint:
        return "neutral"
    second = ranked[1][1] if len(ranked) > 1 else 0.0
    return ranked[0][0] if strongest >= acting.visible and strongest >= acting.clear * second else None


def draw_performance(rng: np.random.Generator, acting: Acting, expression: str, classes: Sequence[str]) -> Performance:
    """Draws a performance of `expression`, of a kind by the shares; blends pair it with another of `classes`."""
    bounds = np.cumsum([acting.other, acting.mixed, acting.weak])
    kind: Kind = get_args(Kind)[int(np.searchsorted(bounds, rng.random(), side="right"))]
    side = int(rng.integers(2))
    if kind == "other":
        name, aus = _draw_other(rng)
        return Performance(kind, name, _vary(rng, acting, aus), dominant=None, intensity=0.0)
    shown = [name for name in classes if name != "neutral"]
    if kind != "prototype" and expression == "neutral":
        expression = shown[int(rng.integers(len(shown)))]  # a faint or blended neutral face is no such thing
    if kind == "mixed" and len(shown) < 2:
        kind = "weak"
    others = [name for name in shown if name != expression]
    second = others[int(rng.integers(len(others)))] if kind == "mixed" else None
    weights = {expression: float(rng.uniform(*(acting.weak_intensity if kind == "weak" else acting.intensity)))}
    if second:
        weights[second] = weights[expression] * float(rng.uniform(0.2, 1.0))
    weights.pop("neutral", None)
    aus = activation({})
    for name, weight in weights.items():
        aus += prototype(name, weight, side=side)
        companions = {
            unit: strength * weight * rng.uniform(0.4, 1.0)
            for unit, (chance, strength) in COMPANIONS[name].items()
            if rng.random() < chance * acting.companions
        }
        aus = np.maximum(aus, activation(companions))
    intensity = max(weights.values(), default=0.0)
    return Performance(
        kind, "+".join(weights) or "neutral", _vary(rng, acting, aus), dominant(weights, acting), intensity
    )


def _draw_other(rng: np.random.Generator) -> tuple[str, Activation]:
    """The name of a movement that is no prototype, and its units."""
    names = [*_TABLES["others"], "random"]
    name = names[int(rng.integers(len(names)))]
    if name == "random":
        chosen = rng.choice(ORDER, size=int(rng.integers(2, 5)), replace=False)
        units = {int(unit): float(rng.uniform(0.3, 1.0)) for unit in chosen}
        one_sided = rng.random() >= 0.6
    else:
        units = {unit: float(rng.uniform(*strength)) for unit, strength in _TABLES["others"][name].items()}
        one_sided = name in _TABLES["one_sided"]
    return name, activation(units, side=int(rng.integers(2)) if one_sided else None)


def _vary(rng: np.random.Generator, acting: Acting, aus: Activation) -> Activation:
    """No face performs exactly: units vary on their own and between the sides, and a little of others joins in."""
    each = 1 + acting.unit_spread * rng.standard_normal((len(ORDER), 1))
    sides = 1 + acting.asymmetry * rng.standard_normal((len(ORDER), 2))
    stray = acting.stray * rng.random((len(ORDER), 1)) ** 3 * 2
    return np.clip(aus * each * sides + stray, 0, 1).astype(np.float32)
