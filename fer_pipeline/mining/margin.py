"""Find a margin for each class by the rule in the settings, and the candidates that pass it.

Source: arXiv:2005.08551, eq. 6, read as (best cosine - second best cosine) >= m. Exact ties have margin 0 and never
pass when m > 0. The paper gives no m, so m is also found by a wanted count or a wanted precision. A margin that is
found is greater than 0 and is that of a candidate or a held-out face; given back as a value it selects the same faces.
The order of the candidates changes nothing.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pydantic import Field, model_validator

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import Settings
from fer_pipeline.mining.calibration import Calibration, Labels, Margins, OutOfReachError

NO_CAP = np.iinfo(np.int64).max
LARGEST_MARGIN = 2.0  # cosines lie between -1 and 1
NOTHING = math.inf  # the margin of a class of which nothing may pass

Amount = Annotated[float, Field(ge=0)]
Cap = Annotated[int, Field(ge=1)]
Caps = Int64[np.ndarray, " c"]


class MarginRule(Settings):
    """How the margin is found, and how many faces a class may have.

    `by: margin` takes `value` as the margin m itself, `by: count` as a wanted number of faces, `by: precision` as a
    wanted precision on held-out anchor faces. A mapping of class to value, or `per_class: true`, gives every class a
    margin of its own (`by: count` with `per_class: true` is a balanced subset); otherwise one margin serves all.
    """

    by: Literal["margin", "count", "precision"] = "margin"
    value: Amount | dict[str, Amount] = 0.1
    per_class: bool = False
    cap: Cap | dict[str, Cap] | None = None  # faces a class may have, nearest first; a class not named has no cap
    bound: Literal["estimate", "lower"] = "estimate"  # of `by: precision`: what must reach the value

    @model_validator(mode="after")
    def _values_make_sense(self) -> "MarginRule":
        for value in self.value.values() if isinstance(self.value, dict) else [self.value]:
            if self.by == "margin" and value > LARGEST_MARGIN:
                raise ValueError(f"value is a margin between cosines and cannot exceed 2, found {value}")
            if self.by == "count" and (value < 1 or value != int(value)):
                raise ValueError(
                    f"value is a number of faces with by: count and must be whole and at least 1, found {value}"
                )
            if self.by == "precision" and not 0 < value <= 1:
                raise ValueError(f"value is a precision with by: precision and must lie in (0, 1], found {value}")
        return self

    @property
    def split_by_class(self) -> bool:
        """Whether each class has a margin of its own."""
        return self.per_class or isinstance(self.value, dict)

    def values(self, classes: Sequence[str]) -> Float64[np.ndarray, " c"]:
        """Returns the value of every class; a mapping must name them all."""
        if not isinstance(self.value, dict):
            return np.full(len(classes), float(self.value))
        missing, unknown = sorted(set(classes) - set(self.value)), sorted(set(self.value) - set(classes))
        if missing or unknown:
            raise ConfigError(
                f"mine.value must name every class once: missing {missing or 'none'}, unknown {unknown or 'none'}; "
                f"the classes are {', '.join(classes)}"
            )
        return np.array([self.value[name] for name in classes], np.float64)

    def caps(self, classes: Sequence[str]) -> Caps:
        """Returns the cap of every class, `NO_CAP` where there is none."""
        if not isinstance(self.cap, dict):
            return np.full(len(classes), self.cap or NO_CAP, np.int64)
        if unknown := sorted(set(self.cap) - set(classes)):
            raise ConfigError(f"mine.cap names {', '.join(unknown)}; the classes are {', '.join(classes)}")
        return np.array([self.cap.get(name, NO_CAP) for name in classes], np.int64)


def passes(labels: Labels, margins: Margins, thresholds: Float64[np.ndarray, " c"]) -> Bool[np.ndarray, " n"]:
    """Applies eq. 6 with one margin per class."""
    return margins.astype(np.float64) >= thresholds[labels]


def find_thresholds(
    rule: MarginRule, labels: Labels, margins: Margins, *, calibration: Calibration, classes: Sequence[str]
) -> Float64[np.ndarray, " c"]:
    """Finds the margin of every class by the rule; infinite where nothing of a class may pass."""
    values, caps = rule.values(classes), rule.caps(classes)
    if rule.by == "margin":
        return values
    thresholds = np.full(len(classes), NOTHING)
    everyone = np.arange(len(classes))
    errors: list[OutOfReachError] = []
    for group in everyone[:, None] if rule.split_by_class else [everyone]:
        wanted = float(values[group[0]])
        if rule.by == "precision":
            group = group[calibration.covered[group]]  # no evidence, no promise: nothing of such a class is mined
        members = np.isin(labels, group)
        if not members.any():
            continue
        if rule.by == "count":
            thresholds[group] = margin_for_count(labels[members], margins[members], wanted=int(wanted), caps=caps)
            continue
        try:
            thresholds[group] = calibration.margin_for_precision(
                wanted, group=group, present=margins[members], bound=rule.bound
            )
        except OutOfReachError as error:
            errors.append(error)
    if errors and not np.isfinite(thresholds).any():
        raise errors[0]
    return thresholds


def margin_for_count(labels: Labels, margins: Margins, *, wanted: int, caps: Caps) -> float:
    """Finds the largest margin that selects `wanted` faces, caps counted in.

    Faces of equal margin stand or fall together: where a tie crosses the wanted count, the whole tie is left out, so
    that never more than wanted are selected. Where fewer have a margin above 0, all of those pass.
    """
    order = np.argsort(-margins, kind="stable")
    order = order[margins[order] > 0]
    sorted_margins, sorted_labels = margins[order], labels[order]
    ends_tie = np.diff(sorted_margins, append=np.float32(-1)) != 0
    offers = sorted_margins[ends_tie]
    selected = np.cumsum(ordinals(sorted_labels) < caps[sorted_labels])[ends_tie]
    if not len(offers) or selected[0] > wanted:
        return NOTHING
    most = selected[selected <= wanted].max()
    return float(offers[np.searchsorted(selected, most)])


def ordinals(labels: Labels) -> Labels:
    """Counts the earlier entries of the same class for each entry."""
    order = np.argsort(labels, kind="stable")
    grouped = labels[order]
    result = np.empty(len(labels), np.int64)
    result[order] = np.arange(len(labels)) - np.searchsorted(grouped, grouped)  # less where its class begins
    return result


def first_of_class(
    labels: Labels, best: Margins, identifiers: Sequence[str], *, caps: Caps
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """Returns the entries in order of class and rank, cut off at each class's cap, and their ranks from 1.

    Ranks follow the distance to the centroid, 1 - cos, nearest first (fig. 3 of the paper); ties follow the identifier.
    """
    order = np.lexsort((np.asarray(identifiers, dtype=object), -best, labels))
    ranks = ordinals(labels[order]) + 1
    inside = ranks <= caps[labels[order]]
    return order[inside], ranks[inside]
