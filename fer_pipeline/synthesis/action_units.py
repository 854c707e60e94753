"""Facial action units and the prototypes of the basic expressions: an expression's name in, its action units out.

Source: Ekman and Friesen, EMFACS-7 (1983), and Ekman, Friesen and Hager, FACS Investigator's Guide (2002), table 10-1,
in the common short form: anger 4+5+7+23, disgust 9+15+16, fear 1+2+4+5+20+26, happiness 6+12, sadness 1+4+15,
surprise 1+2+5B+26, contempt R12A+R14A, neutral none.
Differences: FACS' five letters A to E become a number between 0 and 1, and a prototype keeps the ratio of its units at
any intensity; contempt's one-sided units are drawn stronger than A, which would be less than a pixel here. `COMPANIONS`
are units that the guide's variants often add (the open-mouthed smile 6+12+25, the pressed anger 4+7+24 and others).
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

UNITS: dict[int, str] = {
    1: "inner brow raiser",
    2: "outer brow raiser",
    4: "brow lowerer",
    5: "upper lid raiser",
    6: "cheek raiser",
    7: "lid tightener",
    9: "nose wrinkler",
    10: "upper lip raiser",
    12: "lip corner puller",
    14: "dimpler",
    15: "lip corner depressor",
    16: "lower lip depressor",
    17: "chin raiser",
    18: "lip pucker",
    20: "lip stretcher",
    23: "lip tightener",
    24: "lip pressor",
    25: "lips part",
    26: "jaw drop",
    34: "cheek puff",
    43: "eyes closed",
}
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
ONE_SIDED = frozenset({"contempt"})

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

Activation = Float[np.ndarray, "units 2"]  # one row a unit in `ORDER`; columns: left and right in the frontal picture


def activation(units: Mapping[int, float], *, side: int | None = None) -> Activation:
    """Action units by number as an array, on both sides or on one (0 left in the picture, 1 right)."""
    aus = np.zeros((len(ORDER), 2), np.float32)
    columns = slice(None) if side is None else side
    for unit, strength in units.items():
        aus[_ROW[unit], columns] = strength
    return aus


def prototype(expression: str, intensity: float, *, side: int = 1) -> Activation:
    """A basic expression's units at an intensity between 0 and 1; `side` is where a one-sided expression is seen."""
    units = {unit: strength * intensity for unit, strength in PROTOTYPES[expression].items()}
    return activation(units, side=side if expression in ONE_SIDED else None)


class Units:
    """Reads an activation by unit number: `units[12]` is the pair left, right; `units.mean(26)` one number."""

    def __init__(self, aus: Activation) -> None:
        self._aus = aus

    def __getitem__(self, unit: int) -> Float[np.ndarray, " 2"]:
        return self._aus[_ROW[unit]]

    def mean(self, unit: int) -> float:
        """The unit's mean over both sides, for what lies on the midline."""
        return float(self._aus[_ROW[unit]].mean())
