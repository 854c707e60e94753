"""What a face performs: the expression whose turn it is and a generator in, action units and their truth out.

Four kinds: `prototype` (one expression, clearly shown), `weak` (one, faint), `mixed` (a blend of two) and `other`
(speech, wink, blow, yawn, … : units that are no prototype). The truth is the dominant prototype or none, by `dominant`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fer_pipeline.core.settings import Settings
from fer_pipeline.synthesis.action_units import COMPANIONS, ORDER, Activation, activation, prototype

Kind = Literal["prototype", "weak", "mixed", "other"]
Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[Share, Share]

# Units and the range of their strength; `side` units show on one side only.
_OTHERS: dict[str, dict[int, Range]] = {
    "speech": {25: (0.5, 1.0), 26: (0.1, 0.5), 18: (0.0, 0.4), 20: (0.0, 0.4)},
    "pout": {18: (0.6, 1.0), 17: (0.2, 0.6)},
    "blow": {34: (0.6, 1.0), 18: (0.3, 0.8)},
    "yawn": {26: (0.8, 1.0), 25: (0.8, 1.0), 43: (0.5, 1.0), 4: (0.0, 0.4)},
    "squint": {7: (0.6, 1.0), 4: (0.2, 0.6), 10: (0.2, 0.7), 43: (0.2, 0.5)},
    "asleep": {43: (0.9, 1.0), 25: (0.0, 0.5)},
    "press": {24: (0.7, 1.0), 14: (0.3, 0.8), 2: (0.0, 0.6)},
    "bite": {16: (0.5, 1.0), 25: (0.5, 1.0), 17: (0.0, 0.3)},
}
_ONE_SIDED: dict[str, dict[int, Range]] = {
    "wink": {43: (0.85, 1.0), 12: (0.1, 0.5), 6: (0.2, 0.7)},
    "sneer": {10: (0.6, 1.0), 9: (0.2, 0.6)},
    "cocked brow": {2: (0.7, 1.0), 1: (0.3, 0.6)},
}


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


@dataclass(frozen=True, slots=True)
class Performance:
    """One performed expression and the truth about it."""

    kind: Kind
    detail: str  # the expressions of a blend, or what an `other` face does
    aus: Activation
    dominant: str | None
    intensity: float  # of the strongest prototype; 0 for neutral and for `other`


def dominant(weights: Mapping[str, float], acting: Acting) -> str | None:
    """The dominant prototype of a blend, or None.

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
    """A performance of `expression`, or of a kind that the shares ask for; blends pair it with another of `classes`."""
    dice = rng.random()
    side = int(rng.integers(2))
    shown = [name for name in classes if name != "neutral"]
    if dice < acting.other:
        return _other(rng, acting)
    first = expression
    if dice < acting.other + acting.mixed + acting.weak and expression == "neutral":
        first = shown[int(rng.integers(len(shown)))]  # a faint or blended neutral face is no such thing
    if dice < acting.other + acting.mixed and len(shown) > 1:
        rest = [name for name in shown if name != first]
        second = rest[int(rng.integers(len(rest)))]
        strong = rng.uniform(*acting.intensity)
        weights = {first: float(strong), second: float(strong * rng.uniform(0.2, 1.0))}
        return _perform(rng, acting, "mixed", weights, side)
    if dice < acting.other + acting.mixed + acting.weak:
        return _perform(rng, acting, "weak", {first: float(rng.uniform(*acting.weak_intensity))}, side)
    return _perform(rng, acting, "prototype", {first: float(rng.uniform(*acting.intensity))}, side)


def _perform(rng: np.random.Generator, acting: Acting, kind: Kind, weights: dict[str, float], side: int) -> Performance:
    weights = {name: weight for name, weight in weights.items() if name != "neutral"}
    aus = activation({})
    for name, weight in weights.items():
        aus += prototype(name, weight, side=side)
        joining = {
            unit: strength * weight * rng.uniform(0.4, 1.0)
            for unit, (chance, strength) in COMPANIONS[name].items()
            if rng.random() < chance * acting.companions
        }
        aus = np.maximum(aus, activation(joining))
    return Performance(
        kind=kind,
        detail="+".join(weights) or "neutral",
        aus=_enliven(rng, acting, aus),
        dominant=dominant(weights, acting),
        intensity=max(weights.values(), default=0.0),
    )


def _other(rng: np.random.Generator, acting: Acting) -> Performance:
    names = [*_OTHERS, *_ONE_SIDED, "random"]
    name = names[int(rng.integers(len(names)))]
    if name == "random":
        units = {
            int(unit): float(rng.uniform(0.3, 1.0))
            for unit in rng.choice(ORDER, size=int(rng.integers(2, 5)), replace=False)
        }
        aus = activation(units, side=None if rng.random() < 0.6 else int(rng.integers(2)))
    elif name in _ONE_SIDED:
        units = {unit: float(rng.uniform(*span)) for unit, span in _ONE_SIDED[name].items()}
        aus = activation(units, side=int(rng.integers(2)))
    else:
        aus = activation({unit: float(rng.uniform(*span)) for unit, span in _OTHERS[name].items()})
    return Performance(kind="other", detail=name, aus=_enliven(rng, acting, aus), dominant=None, intensity=0.0)


def _enliven(rng: np.random.Generator, acting: Acting, aus: Activation) -> Activation:
    """No face performs exactly: units vary on their own and between the sides, and a little of others joins in."""
    each = 1 + acting.unit_spread * rng.standard_normal((len(ORDER), 1))
    sides = 1 + acting.asymmetry * rng.standard_normal((len(ORDER), 2))
    stray = acting.stray * rng.random((len(ORDER), 1)) ** 3 * 2
    return np.clip(aus * each * sides + stray, 0, 1).astype(np.float32)
