"""Draw what a face shows: the action units of the basic expressions, of blends and of other movements.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import yaml
from jaxtyping import Float
from pydantic import Field

from fer_pipeline.core.settings import Settings

Kind = Literal["other", "mixed", "weak", "prototype"]
Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[Share, Share]
Activation = Float[np.ndarray, "units 2"]  # one row a unit in `ORDER`; columns: left and right in the frontal picture

_TABLES = yaml.safe_load(Path(__file__).with_name("expressions.yaml").read_text(encoding="utf-8"))
UNITS: dict[int, str] = _TABLES["units"]
ORDER: tuple[int, ...] = tuple(UNITS)
PROTOTYPES: dict[str, dict[int, float]] = _TABLES["prototypes"]
COMPANIONS: dict[str, dict[int, list[float]]] = _TABLES["companions"]
_ROW = {unit: row for row, unit in enumerate(ORDER)}


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
