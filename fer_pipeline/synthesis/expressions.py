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
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field

from fer_pipeline.core.settings import Settings

Kind = Literal["other", "mixed", "weak", "prototype"]
Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[Share, Share]
Activation = Float[np.ndarray, "units 2"]  # one row a unit in `ORDER`; columns: left and right in the frontal picture

UNITS: dict[int, str] = {
    1: "inner brow raiser", 2: "outer brow raiser", 4: "brow lowerer", 5: "upper lid raiser", 6: "cheek raiser",
    7: "lid tightener", 9: "nose wrinkler", 10: "upper lip raiser", 12: "lip corner puller", 14: "dimpler",
    15: "lip corner depressor", 16: "lower lip depressor", 17: "chin raiser", 18: "lip pucker", 20: "lip stretcher",
    23: "lip tightener", 24: "lip pressor", 25: "lips part", 26: "jaw drop", 34: "cheek puff", 43: "eyes closed",
}  # fmt: skip
ORDER: tuple[int, ...] = tuple(UNITS)
_ROW = {unit: row for row, unit in enumerate(ORDER)}

PROTOTYPES: dict[str, dict[int, float]] = {
    "anger": {4: 1.0, 5: 0.6, 7: 0.9, 23: 1.0},
    "disgust": {9: 1.0, 15: 0.6, 16: 0.8},
    "fear": {1: 1.0, 2: 0.7, 4: 0.8, 5: 0.9, 20: 1.0, 26: 0.45},
    "happiness": {6: 0.8, 12: 1.0},
    "neutral": {},
    "sadness": {1: 1.0, 4: 0.8, 15: 1.0},
    "surprise": {1: 1.0, 2: 1.0, 5: 0.5, 26: 1.0},
    "contempt": {12: 0.55, 14: 1.0},
}
# Unit -> (how often it joins, how strong at most).
COMPANIONS: dict[str, dict[int, tuple[float, float]]] = {
    "anger": {10: (0.25, 0.5), 17: (0.3, 0.6), 24: (0.4, 0.8), 25: (0.2, 0.7)},
    "disgust": {4: (0.4, 0.5), 10: (0.5, 0.8), 17: (0.3, 0.5), 25: (0.4, 0.6)},
    "fear": {7: (0.3, 0.4), 25: (0.6, 0.8)},
    "happiness": {25: (0.6, 1.0), 26: (0.25, 0.35), 7: (0.2, 0.4)},
    "neutral": {},
    "sadness": {6: (0.2, 0.4), 17: (0.4, 0.7), 25: (0.15, 0.3), 43: (0.15, 0.35)},
    "surprise": {25: (0.7, 0.8)},
    "contempt": {17: (0.2, 0.4), 7: (0.2, 0.4)},
}

# What `other` faces do: units and the range of their strength.
_OTHERS: dict[str, dict[int, Range]] = {
    "speech": {25: (0.5, 1.0), 26: (0.1, 0.5), 18: (0.0, 0.4), 20: (0.0, 0.4)},
    "pout": {18: (0.6, 1.0), 17: (0.2, 0.6)},
    "blow": {34: (0.6, 1.0), 18: (0.3, 0.8)},
    "yawn": {26: (0.8, 1.0), 25: (0.8, 1.0), 43: (0.5, 1.0), 4: (0.0, 0.4)},
    "squint": {7: (0.6, 1.0), 4: (0.2, 0.6), 10: (0.2, 0.7), 43: (0.2, 0.5)},
    "asleep": {43: (0.9, 1.0), 25: (0.0, 0.5)},
    "press": {24: (0.7, 1.0), 14: (0.3, 0.8), 2: (0.0, 0.6)},
    "bite": {16: (0.5, 1.0), 25: (0.5, 1.0), 17: (0.0, 0.3)},
    "wink": {43: (0.85, 1.0), 12: (0.1, 0.5), 6: (0.2, 0.7)},
    "sneer": {10: (0.6, 1.0), 9: (0.2, 0.6)},
    "cocked brow": {2: (0.7, 1.0), 1: (0.3, 0.6)},
}
_ONE_SIDED = frozenset({"contempt", "wink", "sneer", "cocked brow"})


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
    return activation(units, side=side if expression in _ONE_SIDED else None)


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
    unit_spread: Annotated[float, Field(ge=0, le=1)] = 0.15  # relative, of each unit on its own
    asymmetry: Annotated[float, Field(ge=0, le=1)] = 0.1
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
    kinds: tuple[Kind, ...] = ("other", "mixed", "weak", "prototype")
    bounds = np.cumsum([acting.other, acting.mixed, acting.weak])
    kind = kinds[int(np.searchsorted(bounds, rng.random(), side="right"))]
    side = int(rng.integers(2))
    if kind == "other":
        return _draw_other(rng, acting)
    shown = [name for name in classes if name != "neutral"]
    if kind != "prototype" and expression == "neutral":
        expression = shown[int(rng.integers(len(shown)))]  # a faint or blended neutral face is no such thing
    if kind == "mixed" and len(shown) < 2:
        kind = "weak"
    if kind == "mixed":
        others = [name for name in shown if name != expression]
        second = others[int(rng.integers(len(others)))]
        strong = rng.uniform(*acting.intensity)
        weights = {expression: float(strong), second: float(strong * rng.uniform(0.2, 1.0))}
    else:
        weights = {expression: float(rng.uniform(*(acting.weak_intensity if kind == "weak" else acting.intensity)))}
    weights = {name: weight for name, weight in weights.items() if name != "neutral"}
    aus = activation({})
    for name, weight in weights.items():
        aus += prototype(name, weight, side=side)
        companions = {
            unit: strength * weight * rng.uniform(0.4, 1.0)
            for unit, (chance, strength) in COMPANIONS[name].items()
            if rng.random() < chance * acting.companions
        }
        aus = np.maximum(aus, activation(companions))
    return Performance(
        kind=kind,
        detail="+".join(weights) or "neutral",
        aus=_vary(rng, acting, aus),
        dominant=dominant(weights, acting),
        intensity=max(weights.values(), default=0.0),
    )


def _draw_other(rng: np.random.Generator, acting: Acting) -> Performance:
    names = [*_OTHERS, "random"]
    name = names[int(rng.integers(len(names)))]
    if name == "random":
        chosen = rng.choice(ORDER, size=int(rng.integers(2, 5)), replace=False)
        units = {int(unit): float(rng.uniform(0.3, 1.0)) for unit in chosen}
        one_sided = rng.random() >= 0.6
    else:
        units = {unit: float(rng.uniform(*strength)) for unit, strength in _OTHERS[name].items()}
        one_sided = name in _ONE_SIDED
    aus = activation(units, side=int(rng.integers(2)) if one_sided else None)
    return Performance(kind="other", detail=name, aus=_vary(rng, acting, aus), dominant=None, intensity=0.0)


def _vary(rng: np.random.Generator, acting: Acting, aus: Activation) -> Activation:
    """No face performs exactly: units vary on their own and between the sides, and a little of others joins in."""
    each = 1 + acting.unit_spread * rng.standard_normal((len(ORDER), 1))
    sides = 1 + acting.asymmetry * rng.standard_normal((len(ORDER), 2))
    stray = acting.stray * rng.random((len(ORDER), 1)) ** 3 * 2
    return np.clip(aus * each * sides + stray, 0, 1).astype(np.float32)
